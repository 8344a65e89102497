//! `.target` and `.version`: whether an instruction exists for them, as ptxas checks it.

mod table;

use super::decode::scope::Scope;
use super::syntax::{Error, Instruction, Module, Operand};
use std::collections::HashMap;
use std::sync::LazyLock;
pub use table::{DIRECTIVES, FORMS, REGISTERS};

/// What a module says it is compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// `.target`, without `sm_`; `None` when it is not of that form: then nothing is checked.
    pub target: Option<Target>,
    /// `.version`, major and minor.
    pub version: (u32, u32),
}

/// `sm_90`, `sm_90a`, `sm_100f`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// 10 x major + minor of the compute capability.
    pub number: u32,
    /// `a`: this capability alone. `f`: its family, those of the same major version from it on.
    pub suffix: Option<char>,
}

impl Target {
    /// The target with this spelling.
    pub fn parse(word: &str) -> Option<Self> {
        let digits = word.strip_prefix("sm_")?;
        let (number, suffix) = match digits.strip_suffix(['a', 'f']) {
            Some(number) => (number, digits.chars().next_back()),
            None => (digits, None),
        };
        Some(Self { number: number.parse().ok()?, suffix })
    }
}

/// The targets that have an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Least {
    /// This one and every later one.
    Sm(u32),
    /// Only targets with a suffix: `a` of these numbers, and `a` or `f` from these numbers on within their families.
    Special {
        /// Numbers of targets with `a`.
        alone: &'static [u32],
        /// Least numbers of targets with `f` or `a`.
        families: &'static [u32],
    },
}

impl Least {
    /// Whether a target is one of these.
    pub fn has(self, target: Target) -> bool {
        match self {
            Self::Sm(least) => target.number >= least,
            Self::Special { alone, families } => {
                let of_family = |least: &u32| target.number >= *least && target.number / 10 == least / 10;
                target.suffix == Some('a') && alone.contains(&target.number)
                    || target.suffix.is_some() && families.iter().any(of_family)
            }
        }
    }

    /// Of several that are not met, the one with the highest rank is reported.
    fn rank(self) -> u32 {
        match self {
            Self::Sm(least) => least,
            Self::Special { .. } => u32::MAX,
        }
    }
}

impl std::fmt::Display for Least {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sm(least) => write!(formatter, "sm_{least} or higher"),
            Self::Special { alone, families } => {
                let alone = alone.iter().map(|number| format!("sm_{number}a"));
                let names: Vec<_> = alone.chain(families.iter().map(|number| format!("sm_{number}f"))).collect();
                formatter.write_str(&names.join(" or "))
            }
        }
    }
}

/// A row: what it is about, which targets have it, since which version of the PTX ISA.
pub type Row = (&'static str, Least, (u32, u32));

/// A row of [`FORMS`], read.
struct Form {
    /// One of each must be there.
    words: Vec<Vec<&'static str>>,
    /// None of these may be there.
    without: Vec<&'static str>,
    /// The number of operands, if it matters.
    operands: Option<usize>,
    row: &'static Row,
}

impl Form {
    /// The opcodes of a row, and the rest of it.
    fn read(row: &'static Row) -> (Vec<&'static str>, Self) {
        let mut parts = row.0.split(' ');
        let opcodes = parts.next().unwrap_or("").split('|').collect();
        let mut form = Self { words: Vec::new(), without: Vec::new(), operands: None, row };
        for part in parts {
            if let Some(word) = part.strip_prefix('!') {
                form.without.push(word);
            } else if let Some(number) = part.strip_prefix('#') {
                form.operands = number.parse().ok();
            } else {
                form.words.push(part.split('|').collect());
            }
        }
        (opcodes, form)
    }

    fn is(&self, instruction: &Instruction) -> bool {
        let has = |word: &str| instruction.opcode.iter().skip(1).any(|other| &**other == word);
        self.operands.is_none_or(|number| instruction.operands.len() == number)
            && self.words.iter().all(|choice| choice.iter().any(|word| has(word)))
            && !self.without.iter().any(|word| has(word))
    }
}

/// The rows by opcode; `*` has those of every opcode.
static BY_OPCODE: LazyLock<HashMap<&'static str, Vec<Form>>> = LazyLock::new(|| {
    let mut forms: HashMap<_, Vec<_>> = HashMap::new();
    for row in FORMS {
        let (opcodes, _) = Form::read(row);
        for opcode in opcodes {
            forms.entry(opcode).or_default().push(Form::read(row).1);
        }
    }
    forms
});

/// The rows of [`FORMS`] that apply to an instruction.
pub fn rows(instruction: &Instruction) -> impl Iterator<Item = &'static Row> {
    let opcode = instruction.opcode.first().map_or("", AsRef::as_ref);
    let forms = ["*", opcode].into_iter().filter_map(|opcode| BY_OPCODE.get(opcode)).flatten();
    forms.filter(|form| form.is(instruction)).map(|form| form.row)
}

impl Platform {
    /// That of a module.
    pub fn of(module: &Module) -> Self {
        Self { target: Target::parse(&module.target), version: module.version }
    }

    /// Checks one instruction.
    ///
    /// # Errors
    /// The target or the version does not have it; the message names those that do.
    pub fn check(&self, instruction: &Instruction, scope: &Scope) -> Result<(), Error> {
        self.need(rows(instruction), instruction.line, || instruction.opcode.join("."))?;
        for operand in &instruction.operands {
            let Operand::Name(name) = operand else { continue };
            // A program may declare a register of the same name.
            if name.starts_with('%') && scope.find(name).is_none() {
                let stem = name.split('.').next().unwrap_or(name);
                self.need(REGISTERS.iter().filter(|row| row.0 == stem), instruction.line, || name.clone())?;
            }
        }
        Ok(())
    }

    /// Checks what some rows ask for.
    ///
    /// # Errors
    /// As [`Platform::check`].
    pub fn need<'a>(
        &self,
        rows: impl Iterator<Item = &'a Row>,
        line: u32,
        spelled: impl Fn() -> String,
    ) -> Result<(), Error> {
        let Some(target) = self.target else { return Ok(()) };
        let (mut least, mut version) = (None::<Least>, (0, 0));
        for row in rows {
            version = version.max(row.2);
            if !row.1.has(target) && least.is_none_or(|known| known.rank() < row.1.rank()) {
                least = Some(row.1);
            }
        }
        if let Some(least) = least {
            let Target { number, suffix } = target;
            let own = suffix.map_or(String::new(), String::from);
            let message = format!("{} needs .target {least}, and the module's is sm_{number}{own}", spelled());
            return Err(Error::new(line, message));
        }
        if version > self.version {
            let ((major, minor), own) = (version, self.version);
            let message = format!(
                "{} needs .version {major}.{minor} or later, and the module's is {}.{}",
                spelled(),
                own.0,
                own.1
            );
            return Err(Error::new(line, message));
        }
        Ok(())
    }
}
