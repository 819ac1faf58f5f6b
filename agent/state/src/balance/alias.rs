//! A choice by weight in constant time: Walker's alias method, in integers, so that every item gets exactly its share.
//!
//! `n` columns, each as high as the sum of all weights. Column `i` holds item `i` up to a mark and one other item above
//! it. A choice is a column and a height in it.

/// A table to choose from. Items are identified by their position.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    total: u64,
    columns: Columns,
}

#[derive(Debug, PartialEq, Eq)]
enum Columns {
    /// All weights are the same.
    Even(usize),
    Mixed(Box<[Column]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Column {
    /// Heights below it belong to the column's own item.
    mark: u64,
    /// Heights above it belong to this item.
    other: usize,
}

impl Alias {
    /// A table of items with these weights; `None` when all are zero.
    pub(crate) fn new(weights: &[u64]) -> Option<Self> {
        let total: u64 = weights.iter().sum();
        if total == 0 {
            return None;
        }
        let even = weights.iter().all(|weight| *weight == weights[0]);
        let columns = if even { Columns::Even(weights.len()) } else { Columns::Mixed(fill(weights, total)) };
        Some(Self { total, columns })
    }

    /// The sum of the weights.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The position of an item, drawn with a probability in proportion to its weight.
    pub(crate) fn choose(&self, rng: &mut fastrand::Rng) -> usize {
        match &self.columns {
            Columns::Even(1) => 0,
            Columns::Even(count) => rng.usize(0..*count),
            Columns::Mixed(columns) => {
                let at = rng.usize(0..columns.len());
                let Column { mark, other } = columns[at];
                if rng.u64(0..self.total) < mark { at } else { other }
            }
        }
    }

    /// Every item's share, in parts of `items × total`.
    #[cfg(test)]
    pub(crate) fn shares(&self) -> Vec<u128> {
        match &self.columns {
            Columns::Even(count) => vec![u128::from(self.total); *count],
            Columns::Mixed(columns) => {
                let mut shares = vec![0; columns.len()];
                for (at, Column { mark, other }) in columns.iter().enumerate() {
                    shares[at] += u128::from(*mark);
                    shares[*other] += u128::from(self.total - mark);
                }
                shares
            }
        }
    }
}

/// Fills the columns: what an item lacks of its column's height comes from an item that has more than a column.
fn fill(weights: &[u64], total: u64) -> Box<[Column]> {
    let count = weights.len() as u128;
    let mut left: Vec<u128> = weights.iter().map(|weight| u128::from(*weight) * count).collect();
    let height = u128::from(total);
    let (mut short, mut tall): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|at| left[*at] < height);
    let mut columns: Vec<Column> = (0..weights.len()).map(|at| Column { mark: total, other: at }).collect();
    while let (Some(low), Some(high)) = (short.pop(), tall.last().copied()) {
        // Below `total`, or it would not be short.
        columns[low] = Column { mark: u64::try_from(left[low]).unwrap_or(total), other: high };
        left[high] -= height - left[low];
        if left[high] < height {
            tall.pop();
            short.push(high);
        }
    }
    columns.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_has_exactly_its_share() {
        let mut rng = fastrand::Rng::with_seed(3);
        for round in 0..2000 {
            let count = rng.usize(1..70);
            let most = [2, 5, 1000, u64::from(u32::MAX)][round % 4];
            let weights: Vec<u64> = (0..count).map(|_| rng.u64(0..=most)).collect();
            let total: u64 = weights.iter().sum();
            let Some(alias) = Alias::new(&weights) else {
                assert_eq!(total, 0);
                continue;
            };
            assert_eq!(alias.total(), total);
            let want: Vec<u128> = weights.iter().map(|weight| u128::from(*weight) * count as u128).collect();
            assert_eq!(alias.shares(), want, "{weights:?}");
        }
    }

    #[test]
    fn an_item_of_weight_zero_is_never_chosen() {
        let alias = Alias::new(&[0, 3, 0, 1, 0]).unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut seen = [0_u32; 5];
        (0..8000).for_each(|_| seen[alias.choose(&mut rng)] += 1);
        assert_eq!([seen[0], seen[2], seen[4]], [0; 3]);
        assert!(seen[1].abs_diff(6000) < 250, "{seen:?}");
        assert_eq!(Alias::new(&[]), None);
        assert_eq!(Alias::new(&[0, 0]), None);
        assert_eq!(Alias::new(&[9]).unwrap().choose(&mut rng), 0);
    }
}
