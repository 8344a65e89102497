//! The tables printed at the end: the numbers before and after, and a few samples side by side.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use crate::evaluation::{Evaluation, Sample};
use crate::log::Run;

const SAMPLES_SHOWN: usize = 6;
/// A terminal's usual width is too narrow for text in columns; a pipe has none at all.
const WIDTH: u16 = 118;

pub fn numbers(runs: &[Run]) -> Table {
    let mut table =
        table(vec!["model", "held-out reward", "KL(policy‖reference), nats", "tokens", "accuracy", "ESS", "time"]);
    if let Some(run) = runs.first() {
        table.add_row(row("before", run.before(), None));
    }
    for run in runs {
        let name = format!("after {}", run.objective.label());
        table.add_row(row(&name, run.after(), Some(run)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The last step's accuracy and effective sample size stand beside the evaluation.
fn row(name: &str, evaluation: &Evaluation, run: Option<&Run>) -> Vec<String> {
    let last = run.and_then(|run| run.steps.last().map(|step| (step, run.seconds)));
    let dash = || "–".to_owned();
    vec![
        name.to_owned(),
        format!("{:+.3} ± {:.3}", evaluation.mean_reward, evaluation.reward_error),
        format!("{:.2} ± {:.2}", evaluation.kl, evaluation.kl_error),
        format!("{:.1}", evaluation.mean_length),
        last.map_or_else(dash, |(step, _)| format!("{:.2}", step.accuracy)),
        last.map_or_else(dash, |(step, _)| format!("{:.1}", step.effective_sample_size)),
        last.map_or_else(dash, |(_, seconds)| format!("{seconds:.0} s")),
    ]
}

/// The first completion of some held-out prompts, before and after the first run.
pub fn samples(run: &Run) -> Table {
    let mut table = table(vec!["held-out prompt", "before", "after"]);
    let (before, after) = (&run.before().samples, &run.after().samples);
    let mut prompts = 0;
    let mut previous = "";
    for (before, after) in before.iter().zip(after) {
        if before.prompt == previous {
            continue;
        }
        previous = &before.prompt;
        prompts += 1;
        if prompts > SAMPLES_SHOWN {
            break;
        }
        table.add_row(vec![before.prompt.clone(), shown(before), shown(after)]);
    }
    table
}

fn shown(sample: &Sample) -> String {
    let words = sample.completion.split_whitespace();
    // A model of bytes writes control characters too, and a terminal would obey them.
    let text = words.collect::<Vec<_>>().join(" ").replace(char::is_control, "\u{fffd}");
    format!("[{:+.2}] {text}", sample.reward)
}

fn table(header: Vec<&str>) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(header);
    table
}
