//! Golden fixtures: one `.safetensors` file with the inputs of a step and what float64 automatic differentiation makes
//! of them.
//!
//! `format` in the metadata is `exo-golden-1`. N rows, V columns, S sequences, G groups; expected values are F64 unless
//! said otherwise.
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `logits` | \[N, V\] F32, F16 or BF16 | |
//! | `targets` | \[N\] I64 | negative: not scored |
//! | `sequence_offsets`, `group_offsets` | \[S+1\], \[G+1\] I64 | |
//! | `reference_token_log_probs` | \[N\] F32 | |
//! | `rewards` | \[S\] F32 | |
//! | `expected_token_log_probs`, `expected_log_sum_exp`, `expected_entropy` | \[N\] | 0 on masked rows |
//! | `expected_log_ratios`, `expected_sequence_grad` | \[S\] | |
//! | `expected_group_losses`, `expected_loss` | \[G\], \[1\] | |
//! | `expected_grad_logits` | \[N, V\] | or `grad_rows` \[R\] I64 and `expected_grad_logits_rows` \[R, V\] F32 |
//!
//! Metadata, all strings: `objective` (`exo-rw`, `exo-pref`, `dpo-rw`, `dpo-pref`), `beta_pi`, `beta_r`,
//! `label_smoothing` (a number or `official`), `temperature`, `softcap` (`0`: none).

use std::path::{Path, PathBuf};

use exo_kernels::{Batch, Betas, LogitOptions, LossOptions, Objective};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Where the golden fixtures are: `EXO_KERNELS_GOLDEN`, for binaries that run on another machine, or the repository.
pub fn golden_folder() -> PathBuf {
    let repository = || env!("CARGO_MANIFEST_DIR").into();
    std::env::var_os("EXO_KERNELS_GOLDEN").map_or_else(repository, PathBuf::from)
}

/// What went wrong, in words that name the file's part.
pub type Result<T> = std::result::Result<T, String>;

/// Logits in the type of the file.
#[derive(Debug, Clone)]
pub enum StoredLogits {
    /// Single precision.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

/// The gradient of the logits: all rows, or some.
#[derive(Debug, Clone)]
pub struct ExpectedGradient {
    /// Which rows.
    pub rows: Vec<usize>,
    /// \[R, V\].
    pub values: Vec<f64>,
    /// Whether the values were rounded to F32.
    pub rounded: bool,
}

/// One file.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// \[N, V\].
    pub logits: StoredLogits,
    /// V.
    pub vocab: usize,
    /// \[N\]; negative: not scored.
    pub targets: Vec<i64>,
    /// Sequences and groups.
    pub batch: Batch,
    /// Log-probs under the reference model, \[N\].
    pub reference: Vec<f32>,
    /// \[S\].
    pub rewards: Vec<f32>,
    /// The loss.
    pub options: LossOptions,
    /// \[N\], in nats; 0 on masked rows.
    pub log_probs: Vec<f64>,
    /// \[N\]; 0 on masked rows.
    pub log_sum_exps: Vec<f64>,
    /// \[N\], in nats; 0 on masked rows.
    pub entropies: Vec<f64>,
    /// \[S\].
    pub log_ratios: Vec<f64>,
    /// \[G\].
    pub group_losses: Vec<f64>,
    /// Mean over groups.
    pub loss: f64,
    /// d loss / d log-ratio, \[S\].
    pub coefficients: Vec<f64>,
    /// d loss / d logits.
    pub gradient: ExpectedGradient,
}

impl Fixture {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Fixture::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let text = |key: &str| metadata.get(key).map(String::as_str).ok_or(format!("no metadata entry {key}"));
        let number = |key: &str| {
            let value = text(key)?;
            value.parse::<f64>().map_err(|_| format!("metadata entry {key}: {value} given, a number expected"))
        };
        let format = text("format")?;
        if format != "exo-golden-1" {
            return Err(format!("format: {format} given, exo-golden-1 expected"));
        }

        let tensors = Tensors(SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?);
        let (shape, dtype, data) = tensors.get("logits")?;
        let &[rows, vocab] = shape.as_slice() else { return Err(format!("logits: shape {shape:?}, [N, V] expected")) };
        let logits = match dtype {
            Dtype::F32 => StoredLogits::F32(cast(data, f32::from_le_bytes)),
            Dtype::F16 => StoredLogits::F16(cast(data, f16::from_le_bytes)),
            Dtype::BF16 => StoredLogits::Bf16(cast(data, bf16::from_le_bytes)),
            other => return Err(format!("logits: dtype {other:?}, F32, F16 or BF16 expected")),
        };
        let batch = Batch::new(&tensors.i64("sequence_offsets")?, &tensors.i64("group_offsets")?)
            .map_err(|error| error.to_string())?;
        let gradient = match tensors.f64("expected_grad_logits") {
            Ok(values) => ExpectedGradient { rows: (0..rows).collect(), values, rounded: false },
            Err(_) => ExpectedGradient {
                rows: tensors.i64("grad_rows")?.into_iter().map(|row| row as usize).collect(),
                values: tensors.f32("expected_grad_logits_rows")?.into_iter().map(f64::from).collect(),
                rounded: true,
            },
        };

        let betas = Betas { policy: number("beta_pi")?, reward: number("beta_r")? };
        let objective = match (text("objective")?, text("label_smoothing")?) {
            ("exo-rw", _) => Objective::exo(betas),
            ("dpo-rw", _) => Objective::dpo_rw(betas),
            ("exo-pref", "official") => Objective::exo_pref_official(betas.policy),
            ("exo-pref", _) => Objective::exo_pref(betas.policy, number("label_smoothing")?),
            ("dpo-pref", _) => Objective::dpo_pref(betas.policy, number("label_smoothing")?),
            (other, _) => {
                return Err(format!("objective: {other} given, exo-rw, exo-pref, dpo-rw or dpo-pref expected"));
            }
        };
        let logit_options = LogitOptions::default()
            .with_temperature(number("temperature")?)
            .and_then(|options| options.with_softcap(number("softcap").unwrap_or(f64::NAN)));
        let options = LossOptions::from(objective.map_err(|error| error.to_string())?)
            .with_logits(logit_options.map_err(|error| error.to_string())?);

        let fixture = Fixture {
            logits,
            vocab,
            targets: tensors.i64("targets")?,
            batch,
            reference: tensors.f32("reference_token_log_probs")?,
            rewards: tensors.f32("rewards")?,
            options,
            log_probs: tensors.f64("expected_token_log_probs")?,
            log_sum_exps: tensors.f64("expected_log_sum_exp")?,
            entropies: tensors.f64("expected_entropy")?,
            log_ratios: tensors.f64("expected_log_ratios")?,
            group_losses: tensors.f64("expected_group_losses")?,
            loss: *tensors.f64("expected_loss")?.first().ok_or("expected_loss: empty")?,
            coefficients: tensors.f64("expected_sequence_grad")?,
            gradient,
        };
        fixture.check(rows)?;
        Ok(fixture)
    }

    /// That every tensor has the length that the others ask for. Whether the inputs make a step is for a loss to say.
    fn check(&self, rows: usize) -> Result<()> {
        let (sequences, groups) = (self.batch.sequences(), self.batch.groups());
        let lengths = [
            ("targets", self.targets.len(), rows),
            ("reference_token_log_probs", self.reference.len(), rows),
            ("rewards", self.rewards.len(), sequences),
            ("expected_token_log_probs", self.log_probs.len(), rows),
            ("expected_log_sum_exp", self.log_sum_exps.len(), rows),
            ("expected_entropy", self.entropies.len(), rows),
            ("expected_log_ratios", self.log_ratios.len(), sequences),
            ("expected_group_losses", self.group_losses.len(), groups),
            ("expected_sequence_grad", self.coefficients.len(), sequences),
            ("gradient", self.gradient.values.len(), self.gradient.rows.len().saturating_mul(self.vocab)),
        ];
        match lengths.iter().find(|(_, given, expected)| given != expected) {
            Some((name, given, expected)) => {
                return Err(format!("{name}: {given} elements given, {expected} expected"));
            }
            None if self.batch.rows() != rows => {
                return Err(format!("sequence_offsets: end at {}, {rows} expected", self.batch.rows()));
            }
            None => {}
        }
        match self.gradient.rows.iter().find(|&&row| row >= rows) {
            Some(row) => Err(format!("grad_rows: row {row} given, below {rows} expected")),
            None => Ok(()),
        }
    }
}

struct Tensors<'a>(SafeTensors<'a>);

impl Tensors<'_> {
    fn get(&self, name: &str) -> Result<(Vec<usize>, Dtype, &[u8])> {
        let tensor = self.0.tensor(name).map_err(|_| format!("no tensor {name}"))?;
        Ok((tensor.shape().to_vec(), tensor.dtype(), tensor.data()))
    }

    fn typed<T, const B: usize>(&self, name: &str, dtype: Dtype, from: fn([u8; B]) -> T) -> Result<Vec<T>> {
        match self.get(name)? {
            (_, given, data) if given == dtype => Ok(cast(data, from)),
            (_, given, _) => Err(format!("{name}: dtype {given:?}, {dtype:?} expected")),
        }
    }

    fn i64(&self, name: &str) -> Result<Vec<i64>> {
        self.typed(name, Dtype::I64, i64::from_le_bytes)
    }

    fn f32(&self, name: &str) -> Result<Vec<f32>> {
        self.typed(name, Dtype::F32, f32::from_le_bytes)
    }

    fn f64(&self, name: &str) -> Result<Vec<f64>> {
        self.typed(name, Dtype::F64, f64::from_le_bytes)
    }
}

fn cast<T, const B: usize>(data: &[u8], from: fn([u8; B]) -> T) -> Vec<T> {
    data.as_chunks::<B>().0.iter().map(|bytes| from(*bytes)).collect()
}
