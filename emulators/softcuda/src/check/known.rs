//! What is known of blocks of other teams: a persistent map from a block to the clocks of its threads.
//!
//! A grid-wide barrier makes every block learn of every other, through one record that all of them extend in turn.
//! Copying a map at each step would cost the square of the number of blocks; here a copy shares all that is the same,
//! and a union skips it.

use std::sync::Arc;

const BITS: u32 = 4;
const WAYS: usize = 1 << BITS;
const TOP: u32 = super::epoch::BLOCK_BITS - BITS;

/// Block -> clocks of its threads, shared copy-on-write.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockMap(Option<Arc<Node>>);

#[derive(Debug)]
enum Node {
    Branch([Option<Arc<Node>>; WAYS]),
    Leaf(Arc<[u32]>),
}

impl BlockMap {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        same(self.0.as_ref(), other.0.as_ref())
    }

    pub(super) fn get(&self, block: u32) -> Option<&[u32]> {
        let mut node = self.0.as_ref()?;
        let mut shift = TOP;
        loop {
            match &**node {
                Node::Leaf(clocks) => return Some(clocks),
                Node::Branch(ways) => node = ways[way(block, shift)].as_ref()?,
            }
            shift = shift.wrapping_sub(BITS);
        }
    }

    /// Replaces what is known of one block.
    pub(super) fn insert(&mut self, block: u32, clocks: Arc<[u32]>) {
        self.0 = Some(inserted(self.0.as_ref(), block, Some(TOP), clocks));
    }

    /// Learns all that `other` knows. The same map comes back, pointer for pointer, when that is nothing new.
    pub(super) fn learn(&mut self, other: &Self) {
        match (&self.0, &other.0) {
            (_, None) => {}
            (None, Some(theirs)) => self.0 = Some(theirs.clone()),
            (Some(mine), Some(theirs)) => self.0 = Some(union(mine, theirs)),
        }
    }
}

fn way(block: u32, shift: u32) -> usize {
    (block >> shift) as usize & (WAYS - 1)
}

fn same(a: Option<&Arc<Node>>, b: Option<&Arc<Node>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

fn inserted(node: Option<&Arc<Node>>, block: u32, shift: Option<u32>, clocks: Arc<[u32]>) -> Arc<Node> {
    let Some(shift) = shift else { return Arc::new(Node::Leaf(clocks)) };
    let mut ways = match node.map(|node| &**node) {
        Some(Node::Branch(ways)) => ways.clone(),
        _ => Default::default(),
    };
    let way = way(block, shift);
    ways[way] = Some(inserted(ways[way].as_ref(), block, shift.checked_sub(BITS), clocks));
    Arc::new(Node::Branch(ways))
}

fn union(a: &Arc<Node>, b: &Arc<Node>) -> Arc<Node> {
    if Arc::ptr_eq(a, b) {
        return a.clone();
    }
    match (&**a, &**b) {
        (Node::Leaf(x), Node::Leaf(y)) => {
            if x.iter().zip(&**y).all(|(x, y)| y <= x) {
                a.clone()
            } else if x.iter().zip(&**y).all(|(x, y)| x <= y) {
                b.clone()
            } else {
                Arc::new(Node::Leaf(x.iter().zip(&**y).map(|(x, y)| *x.max(y)).collect()))
            }
        }
        (Node::Branch(x), Node::Branch(y)) => {
            let ways: [Option<Arc<Node>>; WAYS] = std::array::from_fn(|way| match (&x[way], &y[way]) {
                (Some(x), Some(y)) => Some(union(x, y)),
                (x, y) => x.as_ref().or(y.as_ref()).cloned(),
            });
            if ways.iter().zip(x).all(|(way, x)| same(way.as_ref(), x.as_ref())) {
                a.clone()
            } else if ways.iter().zip(y).all(|(way, y)| same(way.as_ref(), y.as_ref())) {
                b.clone()
            } else {
                Arc::new(Node::Branch(ways))
            }
        }
        // Every leaf is at the same depth.
        _ => a.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unions_are_elementwise_maxima_and_share() {
        let mut a = BlockMap::default();
        a.insert(7, [1, 5].into());
        a.insert((1 << 28) - 1, [3, 3].into());
        let mut b = BlockMap::default();
        b.insert(7, [2, 4].into());
        b.insert(8, [9, 9].into());
        let mut both = a.clone();
        both.learn(&b);
        assert_eq!(both.get(7), Some(&[2, 5][..]));
        assert_eq!(both.get(8), Some(&[9, 9][..]));
        assert_eq!(both.get((1 << 28) - 1), Some(&[3, 3][..]));
        assert_eq!(both.get(6), None);
        let before = both.clone();
        both.learn(&a);
        both.learn(&b);
        assert!(both.is_same(&before));
        a.learn(&before);
        assert!(a.is_same(&before));
    }
}
