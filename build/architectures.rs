//! For which GPUs the kernels are compiled: a list, held against what this nvcc supports. Standard library only.

use std::fmt;

/// By default: A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50.
pub const DEFAULT: &str = "80,86,89,90,100,120";
/// The variable that names others.
pub const VARIABLE: &str = "EXO_KERNELS_CUDA_ARCHS";
/// The kernels reduce integers over a warp in one instruction, which devices have from here on.
const LOWEST: u32 = 80;
/// The first numbers whose features can be asked for alone (`90a`), and with those of their family (`100f`).
const LOWEST_SPECIFIC: u32 = 90;
const LOWEST_FAMILY: u32 = 100;
/// Came with the same nvcc (12.9) as the families, which `--list-gpu-arch` does not name.
const SIGN_OF_FAMILIES: u32 = 121;

/// A compute capability as nvcc writes it: 90 for 9.0, and `a` or `f` behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture {
    number: u32,
    suffix: Option<char>,
}

impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.number)?;
        self.suffix.map_or(Ok(()), |suffix| write!(formatter, "{suffix}"))
    }
}

impl Architecture {
    /// Reads `90`, `sm_90`, `compute_90` or `9.0`, each with `a` or `f` behind it or not; `None` for anything else.
    fn read(entry: &str) -> Option<Self> {
        let (digits, suffix) = match entry.strip_suffix(['a', 'f']) {
            Some(digits) => (digits, entry.chars().next_back()),
            None => (entry, None),
        };
        let digits =
            match (digits.strip_prefix("sm_").or_else(|| digits.strip_prefix("compute_")), digits.split_once('.')) {
                (Some(digits), _) => digits.to_owned(),
                (None, Some((major, minor))) if minor.len() == 1 && !major.is_empty() => format!("{major}{minor}"),
                (None, _) => digits.to_owned(),
            };
        let written = (2..=3).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
        let number = digits.parse().ok().filter(|_| written && !digits.starts_with('0'))?;
        Some(Self { number, suffix })
    }

    /// The architecture that a folder of kernels is for, such as `sm90a`; `None` for a folder of kernels for all.
    pub fn of_folder(name: &str) -> Option<Result<Self, String>> {
        let rest = name.strip_prefix("sm").filter(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))?;
        let read = Self::read(rest).filter(|read| read.suffix != Some('f') && read.check(None).is_ok());
        Some(
            read.ok_or_else(|| {
                format!("a folder of one architecture, such as sm90a or sm80, was expected, not {name}")
            }),
        )
    }

    /// The first and the last compute capability that its machine code runs on, major and minor each: those of its major
    /// number from it on, and with the suffix `a` it alone.
    pub fn capabilities(self) -> ((u32, u32), (u32, u32)) {
        let (major, minor) = (self.number / 10, self.number % 10);
        ((major, minor), (major, if self.suffix == Some('a') { minor } else { 9 }))
    }

    /// Whether the kernels are compiled for devices that its machine code runs on: with which suffix does not matter.
    pub fn is_among(self, chosen: &[Self]) -> bool {
        let (first, last) = self.capabilities();
        chosen.iter().any(|other| (first..=last).contains(&(other.number / 10, other.number % 10)))
    }

    /// `-gencode` options for this architecture alone: machine code, and PTX for the software device of the tests.
    pub fn code_options(self) -> Vec<String> {
        let codes = [format!("sm_{self}"), format!("compute_{self}")];
        codes.map(|code| format!("-gencode=arch=compute_{self},code={code}")).to_vec()
    }

    /// Why the kernels are not compiled for it; `supported`: by this nvcc, if it has said so.
    fn check(self, supported: Option<&[Self]>) -> Result<(), String> {
        let Self { number, suffix } = self;
        if number < LOWEST {
            return Err("the kernels need a compute capability of 8.0 or later".to_owned());
        }
        if suffix.is_some_and(|suffix| number < if suffix == 'a' { LOWEST_SPECIFIC } else { LOWEST_FAMILY }) {
            return Err(format!("there is {number} only: 'a' begins with 90, 'f' with 100"));
        }
        let Some(supported) = supported else { return Ok(()) };
        let has = |number| supported.iter().any(|other| other.number == number);
        if has(number) && (suffix != Some('f') || has(SIGN_OF_FAMILIES)) {
            return Ok(());
        }
        Err(format!("this nvcc does not support it; it supports {}", list(supported)))
    }
}

/// `8.0, 9.0`, as people write them.
pub fn list(architectures: &[Architecture]) -> String {
    let name = |Architecture { number, suffix }: &Architecture| {
        format!("{}.{}{}", number / 10, number % 10, suffix.map(String::from).unwrap_or_default())
    };
    architectures.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// What `nvcc --list-gpu-arch` has printed: `compute_80` and the like, one on a line. Those that the kernels can run on;
/// `None` if it names none at all.
pub fn supported(printed: &str) -> Option<Vec<Architecture>> {
    let words = printed.split_whitespace().filter(|word| word.starts_with("compute_"));
    let mut all: Vec<Architecture> = words.filter_map(Architecture::read).collect();
    if all.is_empty() {
        return None;
    }
    all.retain(|architecture| architecture.number >= LOWEST);
    all.sort();
    Some(all)
}

/// What is compiled and what is not.
#[derive(Debug, PartialEq)]
pub struct Chosen {
    /// In ascending order.
    pub architectures: Vec<Architecture>,
    /// Of the default list, since this nvcc does not support it.
    pub left_out: Vec<Architecture>,
}

/// Reads a list, in any order, with `,`, `;` or spaces between its entries. An empty one, which is how many tools unset a
/// variable, is the default list; that is cut to what is supported, while an entry of the user's that is not is an error.
///
/// # Errors
///
/// The entry, and why kernels are not compiled for it.
pub fn choose(named: &str, supported: Option<&[Architecture]>) -> Result<Chosen, String> {
    let entries = |text: &'static str| text.split(',').filter_map(Architecture::read);
    let mut words = named.split([',', ';']).flat_map(str::split_whitespace).peekable();
    let mut chosen = Chosen { architectures: Vec::new(), left_out: Vec::new() };
    if words.peek().is_none() {
        (chosen.architectures, chosen.left_out) = entries(DEFAULT).partition(|entry| entry.check(supported).is_ok());
        if chosen.architectures.is_empty() {
            let has = list(supported.unwrap_or_default());
            return Err(format!(
                "this nvcc supports {}, and the kernels need one of {}: use a newer CUDA toolkit (11.8 or later)",
                if has.is_empty() { "no compute capability of 8.0 or later" } else { &has },
                list(&chosen.left_out),
            ));
        }
    }
    for word in words {
        let refused = |why: &str| format!("{VARIABLE}: \"{word}\": {why}");
        let expected = "a compute capability was expected, such as 9.0, 90, sm_90 or 90a, or several with commas between them \
                        (what GPU a machine has, `nvidia-smi --query-gpu=compute_cap --format=csv` says)";
        let entry = Architecture::read(&word.to_ascii_lowercase()).ok_or_else(|| refused(expected))?;
        entry.check(supported).map_err(|why| refused(&why))?;
        chosen.architectures.push(entry);
    }
    chosen.architectures.sort();
    chosen.architectures.dedup();
    Ok(chosen)
}

/// `-gencode` options: machine code for each, PTX of the lowest and of the highest. PTX is without suffix: with one, no
/// later device could compile it.
pub fn code_options(architectures: &[Architecture]) -> Vec<String> {
    let machine_code = architectures.iter().map(|name| format!("-gencode=arch=compute_{name},code=sm_{name}"));
    let mut ends: Vec<u32> =
        [architectures.first(), architectures.last()].into_iter().flatten().map(|end| end.number).collect();
    ends.dedup();
    let ptx = ends.iter().map(|number| format!("-gencode=arch=compute_{number},code=compute_{number}"));
    machine_code.chain(ptx).collect()
}
