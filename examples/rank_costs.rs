//! What a step over ranks costs: bytes, which are counted, and milliseconds, which are a MODEL; and its picture, `docs/ranks.svg`.
//!
//! ```text
//! cargo run --example rank_costs -- [--picture docs/ranks.svg]
//! ```
//!
//! The model: a device computes at the rates of its data sheet, all-gathers and sums go round rings, each hop takes a latency and
//! the link's time for its bytes. Nothing in it was measured on a GPU. The bytes are those of `ranks::Traffic`, which tests hold to what
//! engines have counted.

use clap::Parser;
use exo_kernels::backend::partial_rows_of;
use exo_kernels::ranks::{StepShape, Traffic};
use std::fmt::Write;
use std::path::PathBuf;

/// What CUDA exchanges of a row and slice.
const PART_BYTES: usize = 16;

#[derive(Parser)]
#[command(about = "What a step over ranks costs: bytes, and a model of its time")]
struct Arguments {
    /// Where to draw it.
    #[arg(long)]
    picture: Option<PathBuf>,
}

/// Between two ranks that are next to one another.
struct Link {
    name: &'static str,
    /// Bytes a second, each way, of the data sheet.
    bandwidth: f64,
    /// Seconds; assumed.
    hop: f64,
}

const NVLINK: Link = Link { name: "NVLink 4", bandwidth: 450e9, hop: 1e-6 };
const INFINIBAND: Link = Link { name: "InfiniBand NDR", bandwidth: 50e9, hop: 3e-6 };

/// Seconds until a collective's kernel runs; assumed.
const LAUNCH: f64 = 8e-6;

/// An H100's data sheet: bytes a second, products of bf16 a second.
const MEMORY: f64 = 3.35e12;
const PRODUCTS: f64 = 989e12;

const ROWS: usize = 8192;
const VOCAB: usize = 128_256;
const HIDDEN: usize = 4096;
const SEQUENCES: usize = 32;

impl Link {
    fn all_gather(&self, ranks: usize, bytes: usize) -> f64 {
        let hops = ranks.saturating_sub(1) as f64;
        if hops == 0.0 { 0.0 } else { LAUNCH + hops * (self.hop + bytes as f64 / self.bandwidth) }
    }

    fn sum(&self, ranks: usize, bytes: usize) -> f64 {
        let hops = ranks.saturating_sub(1) as f64;
        let moved = 2.0 * hops / ranks as f64 * bytes as f64;
        if hops == 0.0 { 0.0 } else { LAUNCH + 2.0 * hops * self.hop + moved / self.bandwidth }
    }
}

/// A step of one rank, forward and backward.
struct Cost {
    name: String,
    columns: usize,
    traffic: Traffic,
    /// Seconds: computing; exchanging rows; sequences; and what of the hidden gradient's sum is longer than the head's products.
    computing: f64,
    rows: f64,
    sequences: f64,
    hidden: f64,
    /// All of that sum.
    hidden_sum: f64,
}

impl Cost {
    fn of(vocab_ranks: usize, nodes: usize, from_hidden: bool) -> Self {
        let columns = VOCAB.div_ceil(vocab_ranks);
        let shape = StepShape {
            rows: ROWS,
            most_columns: if vocab_ranks > 1 { columns } else { 0 },
            hidden_numbers: if from_hidden && vocab_ranks > 1 { ROWS * HIDDEN } else { 0 },
            sequences: SEQUENCES,
            most_sequences: SEQUENCES,
            ranks_of_rows: 0,
            groups: nodes > 1,
        };
        let traffic = traffic(&shape);
        let product = 2.0 * (ROWS * HIDDEN * columns) as f64 / PRODUCTS;
        // Logits are read, read again and overwritten; a trained head is four products, the last two of them the backward pass.
        let computing = if from_hidden { 4.0 * product } else { 3.0 * (ROWS * columns * 2) as f64 / MEMORY };
        let hidden_sum = NVLINK.sum(vocab_ranks, traffic.hidden_sum);
        let from = if from_hidden { "hidden states" } else { "logits" };
        let nodes_of = if nodes > 1 { format!(" × {nodes} nodes") } else { String::new() };
        Self {
            name: format!("P = {vocab_ranks}{nodes_of}, from {from}"),
            columns,
            computing,
            rows: NVLINK.all_gather(vocab_ranks, traffic.partial_rows),
            sequences: INFINIBAND.all_gather(nodes, traffic.of_groups),
            hidden: (hidden_sum - 2.0 * product).max(0.0),
            hidden_sum: if traffic.hidden_sum > 0 { hidden_sum } else { 0.0 },
            traffic,
        }
    }

    fn seconds(&self) -> f64 {
        self.computing + self.rows + self.sequences + self.hidden
    }
}

/// [`Traffic::of_step`] of CUDA, which need not be there.
fn traffic(shape: &StepShape) -> Traffic {
    let of_cpu = Traffic::of_step::<exo_kernels::Cpu>(shape);
    Traffic { partial_rows: shape.rows * partial_rows_of(shape.most_columns) * PART_BYTES, ..of_cpu }
}

fn kibibytes(bytes: usize) -> String {
    format!("{:.1}", bytes as f64 / 1024.0)
}

fn table(costs: &[Cost]) -> String {
    let mut text = String::from(
        "| step | columns of a rank | rows, KiB | sequences, KiB | hidden, KiB | computing, ms | rows, ms | sequences, ms | hidden, ms (not hidden behind the head) | exchanging |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for cost in costs {
        let ms = |seconds: f64| format!("{:.3}", seconds * 1e3);
        let share = (cost.seconds() - cost.computing) / cost.seconds();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} ({}) | {:.1} % |",
            cost.name,
            cost.columns,
            kibibytes(cost.traffic.partial_rows),
            kibibytes(cost.traffic.of_groups),
            kibibytes(cost.traffic.hidden_sum),
            ms(cost.computing),
            ms(cost.rows),
            ms(cost.sequences),
            ms(cost.hidden_sum),
            ms(cost.hidden),
            100.0 * share
        );
    }
    text
}

/// Part of a bar: its name, its colour, its seconds.
type Kind = (&'static str, &'static str, fn(&Cost) -> f64);

/// One bar for each step: computing, then what is exchanged.
fn picture(costs: &[Cost]) -> String {
    const WIDTH: f64 = 820.0;
    const LEFT: f64 = 262.0;
    const TOP: f64 = 84.0;
    const BAR: f64 = 16.0;
    const GAP: f64 = 12.0;
    let kinds: [Kind; 4] = [
        ("computing", "#b8bec9", |cost| cost.computing),
        ("rows (all-gather)", "#2b6cb0", |cost| cost.rows),
        ("sequences (all-gather)", "#d97706", |cost| cost.sequences),
        ("hidden gradient (sum), beyond the head's products", "#059669", |cost| cost.hidden),
    ];
    let height = TOP + costs.len() as f64 * (BAR + GAP) + 24.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"bold\">A step over ranks: a model, not measured</text>\n\
         <text x=\"16\" y=\"44\" fill=\"#555\">N = {ROWS}, V = {VOCAB}, H = {HIDDEN}, S = {SEQUENCES} a node; H100, {}, {} between; step and share of exchanges</text>\n",
        NVLINK.name, INFINIBAND.name
    );
    let mut x = 16.0;
    for (name, colour, _) in kinds {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"56\" width=\"11\" height=\"11\" fill=\"{colour}\"/><text x=\"{}\" y=\"66\">{name}</text>",
            x + 16.0
        );
        x += 34.0 + 6.6 * name.len() as f64;
    }
    for (index, cost) in costs.iter().enumerate() {
        let y = TOP + index as f64 * (BAR + GAP);
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", LEFT - 10.0, y + 12.5, cost.name);
        let (width, mut x) = (WIDTH - LEFT - 150.0, LEFT);
        for (_, colour, of) in kinds {
            let length = of(cost) / cost.seconds() * width;
            if length > 0.0 {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
                );
            }
            x += length;
        }
        let share = 100.0 * (cost.seconds() - cost.computing) / cost.seconds();
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\">{:.2} ms, {share:.1} %</text>",
            x + 8.0,
            y + 12.5,
            cost.seconds() * 1e3
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut costs = Vec::new();
    for from_hidden in [false, true] {
        costs.extend([1, 2, 4, 8].map(|ranks| Cost::of(ranks, 1, from_hidden)));
        costs.push(Cost::of(8, 64, from_hidden));
    }
    println!("MODEL: N = {ROWS}, V = {VOCAB}, H = {HIDDEN}, {SEQUENCES} sequences on each node\n\n{}", table(&costs));
    if let Some(path) = arguments.picture {
        std::fs::write(path, picture(&costs))?;
    }
    Ok(())
}
