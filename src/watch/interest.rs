//! Who is interested in a key: an index of watchers by what they watch.
//!
//! Watchers of one key are found by hash. Ranges lie in a treap, a binary search tree ordered by
//! where they begin, that chance keeps balanced: clients cannot know what is drawn, so they cannot
//! build a deep one. Each node knows how far the ranges below it reach, so that a search leaves
//! out all that end too early. Watchers of one and the same range
//! share a node. To find those of a key costs O(log n) in the number of distinct ranges, and what
//! is found.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::storage::key_range::{End, KeyRange};

/// Watchers, by the hub's number.
type Members = SmallVec<[u32; 4]>;

/// See the module.
#[derive(Debug, Default)]
pub struct Interest {
    single: HashMap<Bytes, Members, hashbrown::DefaultHashBuilder>,
    ranges: Tree,
    len: usize,
    /// A node's place in the heap is the hash, by secret keys, of a number.
    draw: RandomState,
    drawn: u64,
}

type Tree = Option<Box<Node>>;

#[derive(Debug)]
struct Node {
    range: KeyRange,
    members: Members,
    /// The furthest end of this subtree.
    reach: End,
    /// No child has a greater one.
    priority: u64,
    left: Tree,
    right: Tree,
}

impl Interest {
    /// Whether nobody is interested in anything.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a watcher; answers its place among those of the same range.
    pub fn insert(&mut self, range: &KeyRange, watcher: u32) -> u32 {
        self.len += 1;
        if range.is_single() {
            let members = self.single.entry(range.start.clone()).or_default();
            return push_member(members, watcher);
        }
        self.drawn += 1;
        let priority = self.draw.hash_one(self.drawn);
        insert(&mut self.ranges, range, watcher, priority)
    }

    /// Removes the watcher of `range` that has that place; answers the one that has it now.
    pub fn remove(&mut self, range: &KeyRange, place: u32) -> Option<u32> {
        self.len -= 1;
        if range.is_single() {
            let members = self.single.get_mut(&range.start).expect("it was added");
            let moved = remove_member(members, place);
            if members.is_empty() {
                self.single.remove(&range.start);
            }
            return moved;
        }
        remove(&mut self.ranges, range, place)
    }

    /// Visits the watchers of `key`, each once.
    pub fn for_each(&self, key: &[u8], mut visit: impl FnMut(u32)) {
        if let Some(members) = self.single.get(key) {
            members.iter().copied().for_each(&mut visit);
        }
        find(&self.ranges, key, &mut visit);
    }
}

fn push_member(members: &mut Members, watcher: u32) -> u32 {
    members.push(watcher);
    members.len() as u32 - 1
}

fn remove_member(members: &mut Members, place: u32) -> Option<u32> {
    members.swap_remove(place as usize);
    members.get(place as usize).copied()
}

fn find(tree: &Tree, key: &[u8], visit: &mut impl FnMut(u32)) {
    let Some(node) = tree else { return };
    if !reaches(&node.reach, key) {
        return;
    }
    find(&node.left, key, visit);
    if *key >= *node.range.start {
        if reaches(&node.range.end, key) {
            node.members.iter().copied().for_each(&mut *visit);
        }
        find(&node.right, key, visit);
    }
}

/// Whether what ends there has not ended before `key`.
fn reaches(end: &End, key: &[u8]) -> bool {
    match end {
        End::Before(end) => key < end,
        End::Unbounded => true,
        End::Single => unreachable!("single keys are found by hash"),
    }
}

/// Adds `watcher` at its range's node, or at a new one; keeps order and heap.
fn insert(tree: &mut Tree, range: &KeyRange, watcher: u32, priority: u64) -> u32 {
    let Some(node) = tree else {
        *tree = Some(Box::new(Node {
            range: range.clone(),
            members: SmallVec::from_slice(&[watcher]),
            reach: range.end.clone(),
            priority,
            left: None,
            right: None,
        }));
        return 0;
    };
    let place;
    match by_place(range, &node.range) {
        Ordering::Equal => return push_member(&mut node.members, watcher),
        Ordering::Less => {
            place = insert(&mut node.left, range, watcher, priority);
            if node
                .left
                .as_ref()
                .is_some_and(|left| left.priority > node.priority)
            {
                rotate_right(tree);
            }
        }
        Ordering::Greater => {
            place = insert(&mut node.right, range, watcher, priority);
            if node
                .right
                .as_ref()
                .is_some_and(|right| right.priority > node.priority)
            {
                rotate_left(tree);
            }
        }
    }
    measure(tree);
    place
}

fn remove(tree: &mut Tree, range: &KeyRange, place: u32) -> Option<u32> {
    let node = tree.as_mut().expect("it was added");
    let moved = match by_place(range, &node.range) {
        Ordering::Less => remove(&mut node.left, range, place),
        Ordering::Greater => remove(&mut node.right, range, place),
        Ordering::Equal => {
            let moved = remove_member(&mut node.members, place);
            if node.members.is_empty() {
                let (left, right) = (node.left.take(), node.right.take());
                *tree = merge(left, right);
            }
            moved
        }
    };
    measure(tree);
    moved
}

/// One tree of two, of which the first lies before the second.
fn merge(left: Tree, right: Tree) -> Tree {
    let (mut left, mut right) = match (left, right) {
        (Some(left), Some(right)) => (left, right),
        (tree, None) | (None, tree) => return tree,
    };
    let mut merged = if left.priority > right.priority {
        left.right = merge(left.right.take(), Some(right));
        Some(left)
    } else {
        right.left = merge(Some(left), right.left.take());
        Some(right)
    };
    measure(&mut merged);
    merged
}

/// The left child rises, and the node becomes its right one.
fn rotate_right(tree: &mut Tree) {
    let mut node = tree.take().expect("a node");
    let mut left = node.left.take().expect("a left child");
    node.left = left.right.take();
    left.right = Some(node);
    measure(&mut left.right);
    *tree = Some(left);
}

/// The right child rises, and the node becomes its left one.
fn rotate_left(tree: &mut Tree) {
    let mut node = tree.take().expect("a node");
    let mut right = node.right.take().expect("a right child");
    node.right = right.left.take();
    right.left = Some(node);
    measure(&mut right.left);
    *tree = Some(right);
}

/// Sets how far a tree reaches, from what its root and its children say.
fn measure(tree: &mut Tree) {
    let Some(node) = tree else { return };
    let children = [&node.left, &node.right];
    let ends = children.into_iter().flatten().map(|child| &child.reach);
    let furthest = ends.chain([&node.range.end]).max_by(|a, b| by_end(a, b));
    let furthest = furthest.expect("the node has an end").clone();
    node.reach = furthest;
}

fn by_place(a: &KeyRange, b: &KeyRange) -> Ordering {
    a.start.cmp(&b.start).then_with(|| by_end(&a.end, &b.end))
}

fn by_end(a: &End, b: &End) -> Ordering {
    match (a, b) {
        (End::Before(a), End::Before(b)) => a.cmp(b),
        (a, b) => (*a == End::Unbounded).cmp(&(*b == End::Unbounded)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u8, end: u8) -> KeyRange {
        let end = match end {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            end => Bytes::from(vec![end]),
        };
        KeyRange::from_wire(Bytes::from(vec![start]), end)
    }

    fn height(tree: &Tree) -> usize {
        match tree {
            None => 0,
            Some(node) => 1 + height(&node.left).max(height(&node.right)),
        }
    }

    proptest! {
        /// The index finds whom asking each would find.
        #[test]
        fn it_finds_those_who_watch_the_key(
            steps in prop::collection::vec((any::<bool>(), 1..12u8, 0..14u8, 0..40usize), 0..120),
        ) {
            let mut interest = Interest::default();
            let mut plain: Vec<(KeyRange, u32, u32)> = Vec::new();
            let mut next = 0;
            for (add, start, end, which) in steps {
                if add || plain.is_empty() {
                    let place = interest.insert(&range(start, end), next);
                    plain.push((range(start, end), next, place));
                    next += 1;
                } else {
                    let (range, _, place) = plain.remove(which % plain.len());
                    let moved = interest.remove(&range, place);
                    let moved = plain.iter_mut().find(|(_, watcher, _)| Some(*watcher) == moved);
                    if let Some((_, _, moved)) = moved {
                        *moved = place;
                    }
                }
                prop_assert_eq!(interest.is_empty(), plain.is_empty());
                for key in 0..14u8 {
                    let mut found = Vec::new();
                    interest.for_each(&[key], |watcher| found.push(watcher));
                    found.sort_unstable();
                    let watch = |range: &KeyRange| range.contains(&[key]);
                    let expected: Vec<u32> =
                        plain.iter().filter(|(r, ..)| watch(r)).map(|(_, w, _)| *w).collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    /// Priorities that a client could foresee would let it build a list, whose recursion ends the
    /// process.
    #[test]
    fn no_two_trees_are_alike() {
        let shape = || {
            let mut interest = Interest::default();
            for number in 0..64u8 {
                interest.insert(&range(1 + number, 100 + number), number.into());
            }
            let root = interest
                .ranges
                .as_ref()
                .map(|root| root.range.start.clone());
            (root, height(&interest.ranges))
        };
        let first = shape();
        assert!((0..20).any(|_| shape() != first), "{first:?}");
    }

    #[test]
    fn ranges_that_come_in_order_make_no_deep_tree() {
        let mut interest = Interest::default();
        for number in 0..10_000u32 {
            let start = Bytes::copy_from_slice(&number.to_be_bytes());
            let end = Bytes::copy_from_slice(&(number + 1).to_be_bytes());
            interest.insert(&KeyRange::from_wire(start, end), number);
        }
        // A random tree of n nodes is about 3 log2(n) high; its recursion needs little stack.
        assert!(
            height(&interest.ranges) < 60,
            "{}",
            height(&interest.ranges)
        );
        let mut found = Vec::new();
        interest.for_each(&7777u32.to_be_bytes(), |watcher| found.push(watcher));
        assert_eq!(found, [7777]);
    }
}
