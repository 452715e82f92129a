//! Extents never overlap, and everything comes back.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Alloc(u64),
    Share(usize),
    Free(usize),
    Shrink(u64),
    Stay,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u64..20_000).prop_map(Step::Alloc),
        2 => (0u64..200).prop_map(Step::Alloc),
        1 => any::<usize>().prop_map(Step::Share),
        5 => any::<usize>().prop_map(Step::Free),
        1 => (0u64..1 << 20).prop_map(Step::Shrink),
        1 => Just(Step::Stay),
    ];
    proptest::collection::vec(step, 0..200)
}

fn overlaps(held: &[(Extent, u64, u32)], extent: &Extent, length: u64) -> bool {
    held.iter().any(|(other, size, _)| {
        other.segment == extent.segment
            && *size > 0
            && length > 0
            && other.offset < extent.offset + length
            && extent.offset < other.offset + size
    })
}

proptest! {
    #[test]
    fn extents_never_overlap_and_all_memory_comes_back(steps in steps()) {
        let mut arena = Arena::new(1 << 20, 1 << 16).unwrap();
        let mut held: Vec<(Extent, u64, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Alloc(length) => {
                    let found = arena.alloc(length).or_else(|| {
                        arena.stay();
                        let index = arena.grow(length).ok()?;
                        arena.confirm(index);
                        arena.alloc(length)
                    });
                    if let Some(extent) = found {
                        prop_assert!(length == 0 || extent.offset.is_multiple_of(LINE));
                        prop_assert!(length == 0 || extent.offset + length <= arena.map(extent.segment).unwrap().size());
                        prop_assert!(!overlaps(&held, &extent, length));
                        held.push((extent, length, 1));
                    }
                }
                Step::Share(which) if !held.is_empty() => {
                    let at = which % held.len();
                    arena.share(&held[at].0, 1);
                    held[at].2 += 1;
                }
                Step::Free(which) if !held.is_empty() => {
                    let at = which % held.len();
                    arena.drop_one(&held[at].0);
                    held[at].2 -= 1;
                    if held[at].2 == 0 {
                        held.swap_remove(at);
                    }
                }
                Step::Shrink(keep) => {
                    arena.shrink(keep);
                    for index in 0..arena.segments.len() {
                        arena.forget(index);
                    }
                }
                Step::Stay => {
                    arena.stay();
                }
                _ => {}
            }
        }
        for (extent, _, references) in held {
            (0..references).for_each(|_| arena.drop_one(&extent));
        }
        prop_assert_eq!(arena.used, 0);
        arena.shrink(0);
        prop_assert_eq!(arena.size, 0);
    }
}
