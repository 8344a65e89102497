//! Runs the token log-prob stage once forward and once backward, in place, on softcuda, for `scripts/count-liger`.
//!
//! Arguments: the type of the logits (`f32`, `f16`, `bf16`), N, V, softcap (0: none), and a folder. It reads `logits`
//! (`[N, V]`), `targets` (`[N]` i64) and `upstream` (`[N]` f32, d loss / d log-prob) from the folder, and writes `log_probs`
//! (`[N]` f32), `gradients` (as the logits) and `reports`, a line of JSON for each launch. Numbers are as they lie in memory.

use cudarc::driver::DeviceRepr;
use exo_kernels::cuda::{Cuda, Matrix, MatrixMut, RowGradients, SavedRows, TokenLogProbs};
use exo_kernels::{Backend, Element, LogitOptions, SoftmaxState};
use half::{bf16, f16};
use softcuda::settings::Settings;
use std::error::Error;
use std::path::Path;
use support::device::{download, upload};

struct Case<'a> {
    rows: usize,
    vocab: usize,
    softcap: f64,
    folder: &'a Path,
}

impl Case<'_> {
    fn read<T: bytemuck::Pod>(&self, name: &str, length: usize) -> Result<Vec<T>, Box<dyn Error>> {
        let bytes = std::fs::read(self.folder.join(name))?;
        let mut numbers = vec![T::zeroed(); length];
        let room: &mut [u8] = bytemuck::cast_slice_mut(&mut numbers);
        if bytes.len() != room.len() {
            return Err(format!("{name}: {} bytes, {} expected", bytes.len(), room.len()).into());
        }
        room.copy_from_slice(&bytes);
        Ok(numbers)
    }

    fn run<T>(&self, cuda: &Cuda) -> Result<(), Box<dyn Error>>
    where
        T: Element + DeviceRepr + bytemuck::Pod,
    {
        let Self { rows, vocab, .. } = *self;
        let mut logits = upload(cuda, &self.read::<T>("logits", rows * vocab)?);
        let targets = upload(cuda, &self.read::<i64>("targets", rows)?);
        let upstream = upload(cuda, &self.read::<f32>("upstream", rows)?);
        let mut options = LogitOptions::default();
        if self.softcap > 0.0 {
            options = options.with_softcap(self.softcap)?;
        }
        let mut log_probs = upload(cuda, &vec![0.0_f32; rows]);
        let mut states = upload(cuda, &vec![SoftmaxState::default(); rows]);
        let outputs = TokenLogProbs {
            log_probs: log_probs.as_view_mut().into(),
            states: states.as_view_mut().into(),
            entropies: None,
        };
        let view = Matrix::new(logits.as_view().into(), vocab)?;
        cuda.token_log_probs(&view, &targets, &options, outputs)?;
        let saved = SavedRows { states: states.as_view().into(), entropies: None };
        let upstream = RowGradients::PerRow { log_probs: upstream.as_view().into(), entropies: None };
        let view = MatrixMut::new(logits.as_view_mut().into(), vocab)?;
        cuda.token_log_probs_backward_in_place(view, &targets, &options, &saved, &upstream)?;
        std::fs::write(self.folder.join("log_probs"), bytemuck::cast_slice(&download(cuda, &log_probs)))?;
        std::fs::write(self.folder.join("gradients"), bytemuck::cast_slice(&download(cuda, &logits)))?;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dtype, rows, vocab, softcap, folder] = arguments.as_slice() else {
        return Err("arguments: TYPE N V SOFTCAP FOLDER".into());
    };
    let case =
        Case { rows: rows.parse()?, vocab: vocab.parse()?, softcap: softcap.parse()?, folder: Path::new(folder) };
    // Only softcuda counts.
    softcuda::install_always()?;
    let control = softcuda::control().ok_or("softcuda is not in use")?;
    let context = cudarc::driver::CudaContext::new(0)?;
    let cuda = Cuda::new(&context.new_stream()?)?;
    let reports = case.folder.join("reports");
    drop(std::fs::remove_file(&reports));
    control.configure(&Settings { report_file: Some(reports), ..Settings::default() });
    match dtype.as_str() {
        "f32" => case.run::<f32>(&cuda),
        "f16" => case.run::<f16>(&cuda),
        "bf16" => case.run::<bf16>(&cuda),
        other => Err(format!("{other} is no type of logits").into()),
    }
}
