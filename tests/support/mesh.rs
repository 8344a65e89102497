//! A batch that is divided among a mesh of ranks: by columns, by rows, by groups.

use crate::backend::{HostLoss, Rows, TestBackend};
use crate::ranks::{Dying, Staged};
use exo_kernels::ranks::{Communicator, Ranks, Threads};
use exo_kernels::{Batch, Element, LossOptions, Reference, Report, Result, Rewards, Shard};
use std::ops::Range;
use std::sync::Arc;
use std::thread;

/// What one device would have.
#[derive(Debug, Clone)]
pub struct Whole<T> {
    pub rows: Rows<T>,
    pub batch: Batch,
    /// Of each row.
    pub reference: Vec<f32>,
    /// Of each sequence, where that is what the loss is given.
    pub reference_sums: Option<Vec<f64>>,
    pub rewards: Vec<f64>,
    pub proposal: Option<Vec<f64>>,
}

/// How it is divided.
#[derive(Debug, Clone)]
pub struct Division {
    /// Where the columns of each rank begin.
    pub columns: Vec<usize>,
    /// Among how many ranks the rows of each sequence are divided.
    pub rows: usize,
    /// Where the sequences of each rank begin.
    pub sequences: Vec<usize>,
}

/// A rank's place in the lines of columns, rows and groups.
pub type Place = (usize, usize, usize);

/// What a rank has.
#[derive(Debug, Clone)]
pub struct Part<T> {
    pub place: Place,
    pub whole: Whole<T>,
    pub shard: Shard,
    /// Which rows of all they are.
    pub rows: Vec<usize>,
    pub columns: Range<usize>,
}

/// What came of a step on one rank: its report, and the gradient of what it has.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<T> {
    pub report: Result<Report>,
    pub gradient: Vec<T>,
}

/// A line that a rank is in, to be filled.
type Line<'a, B> = &'a mut Option<Arc<dyn Communicator<B>>>;

/// From starts to ranges.
fn ranges(starts: &[usize], end: usize) -> Vec<Range<usize>> {
    starts.iter().zip(starts.iter().skip(1).chain([&end])).map(|(start, end)| *start..*end).collect()
}

impl Division {
    pub fn new(columns: &[usize], rows: usize, sequences: &[usize]) -> Self {
        Self { columns: columns.to_vec(), rows, sequences: sequences.to_vec() }
    }

    /// Of all ranks, those of the columns next to one another.
    pub fn places(&self) -> Vec<Place> {
        let (columns, groups) = (self.columns.len(), self.sequences.len());
        (0..groups)
            .flat_map(|group| (0..self.rows).map(move |row| (row, group)))
            .flat_map(|(row, group)| (0..columns).map(move |column| (column, row, group)))
            .collect()
    }

    /// What the rank at a place has. The rows of a sequence are divided unevenly: the first rank has the fewest, mostly none.
    pub fn part<T: Element>(&self, whole: &Whole<T>, place: Place) -> Part<T> {
        let (column, row, group) = place;
        let columns = ranges(&self.columns, whole.rows.vocab)[column].clone();
        let sequences = ranges(&self.sequences, whole.batch.sequences())[group].clone();
        let (mut rows, mut offsets) = (Vec::new(), vec![0]);
        for sequence in sequences.clone() {
            let bounds = &whole.batch.sequence_offsets()[sequence..];
            let (first, count) = (bounds[0], bounds[1] - bounds[0]);
            let at = |rank: usize| first + count * rank * rank / (self.rows * self.rows);
            rows.extend(at(row)..at(row + 1));
            offsets.push(rows.len());
        }
        let groups: Vec<usize> = whole.batch.group_offsets().to_vec();
        let inside = |offset: &&usize| sequences.start < **offset && **offset < sequences.end;
        let mut group_offsets = vec![0];
        group_offsets.extend(groups.iter().filter(inside).map(|offset| offset - sequences.start));
        if !sequences.is_empty() {
            group_offsets.push(sequences.len());
        }
        let batch = Batch::new(&offsets, &group_offsets).expect("a part of a batch");
        let open = |offset: usize| !sequences.is_empty() && !groups.contains(&offset);
        let batch = batch.with_open_ends(open(sequences.start), open(sequences.end));
        let of_rows = |row: &usize| whole.rows.row(&whole.rows.logits, *row)[columns.clone()].to_vec();
        let logits = rows.iter().flat_map(of_rows).collect();
        let targets = rows.iter().map(|row| whole.rows.targets[*row]).collect();
        Part {
            place,
            whole: Whole {
                rows: Rows::new(logits, targets, columns.len()),
                batch,
                reference: rows.iter().map(|row| whole.reference[*row]).collect(),
                reference_sums: whole.reference_sums.as_ref().map(|sums| sums[sequences.clone()].to_vec()),
                rewards: whole.rewards[sequences.clone()].to_vec(),
                proposal: whole.proposal.as_ref().map(|offsets| offsets[sequences].to_vec()),
            },
            shard: Shard::new(columns.start, whole.rows.vocab).expect("a shard"),
            rows,
            columns,
        }
    }

    /// The lines that each rank is in, in the order of [`Division::places`]: none where nothing is divided, unless `always`.
    /// `dying`: which rank is gone before its exchange of which number.
    pub fn mesh<B: TestBackend>(&self, always: bool, dying: Option<(usize, usize)>) -> Vec<Ranks<B>> {
        let places = self.places();
        let mut mesh: Vec<Ranks<B>> = places.iter().map(|_| Ranks::default()).collect();
        // One budget of exchanges for all lines of the rank that dies.
        let budget = dying.map(|(_, exchanges)| Arc::new(std::sync::atomic::AtomicUsize::new(exchanges)));
        let mut add = |count: usize,
                       same: &dyn Fn(Place) -> (usize, usize),
                       line: &dyn for<'a> Fn(&'a mut Ranks<B>) -> Line<'a, B>| {
            if count == 1 && !always {
                return;
            }
            let mut keys: Vec<_> = places.iter().map(|place| same(*place)).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                let mut threads = Threads::new(count).expect("few").into_iter();
                for (index, _) in places.iter().enumerate().filter(|(_, place)| same(**place) == key) {
                    let own = threads.next().expect("a rank of the line");
                    let communicator: Arc<dyn Communicator<B>> = match (&budget, dying) {
                        (Some(budget), Some((rank, _))) if rank == index => {
                            Arc::new(Staged(Dying::with_budget(own, Arc::clone(budget))))
                        }
                        _ => Arc::new(Staged(own)),
                    };
                    *line(&mut mesh[index]) = Some(communicator);
                }
            }
        };
        add(self.columns.len(), &|(_, row, group)| (row, group), &|ranks| &mut ranks.vocab);
        add(self.rows, &|(column, _, group)| (column, group), &|ranks| &mut ranks.rows);
        add(self.sequences.len(), &|(column, row, _)| (column, row), &|ranks| &mut ranks.groups);
        mesh
    }
}

impl<T: Element> Whole<T> {
    /// One step of a loss, forward and backward.
    pub fn step<B: TestBackend>(&self, loss: &mut HostLoss<B>) -> Result<Outcome<T>> {
        let rewards = Rewards::from(&self.rewards);
        let rewards = self.proposal.as_ref().map_or(rewards, |offsets| rewards.with_proposal(offsets));
        let reference = match &self.reference_sums {
            Some(sums) => Reference::PerSequence(sums),
            None => Reference::PerToken(&self.reference),
        };
        let step = loss.forward(&self.rows, &self.batch, reference, rewards)?;
        let gradient = loss.backward(&step, &self.rows)?;
        Ok(Outcome { report: loss.unchecked_report(), gradient })
    }
}

/// A step of each rank of a mesh, `change`d on some, on a thread for each; as often as `steps`.
pub fn steps_of_ranks<B: TestBackend, T: Element>(
    backend: &B,
    (whole, division): (&Whole<T>, &Division),
    options: &LossOptions,
    mesh: Vec<Ranks<B>>,
    steps: usize,
    change: impl Fn(usize, usize, &mut Part<T>, &mut LossOptions) + Sync,
) -> Vec<Vec<Result<Outcome<T>>>> {
    let places = division.places();
    thread::scope(|scope| {
        let change = &change;
        let ranks: Vec<_> = mesh
            .into_iter()
            .zip(places)
            .enumerate()
            .map(|(rank, (ranks, place))| {
                scope.spawn(move || {
                    let mut ranks = Some(ranks);
                    let mut loss = None;
                    let mut outcomes = Vec::new();
                    for step in 0..steps {
                        let (mut part, mut options) = (division.part(whole, place), *options);
                        change(rank, step, &mut part, &mut options);
                        let loss = loss.get_or_insert_with(|| {
                            let ranks = ranks.take().expect("once");
                            HostLoss::new(backend, options).with_ranks(ranks, part.shard)
                        });
                        outcomes.push(part.whole.step(loss));
                    }
                    outcomes
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
    })
}
