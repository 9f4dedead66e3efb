//! The ring against a plain queue: whatever order both sides work in, bytes arrive once and in order.

use std::collections::VecDeque;

use console::ring::{BackendRing, IN_SIZE, Index, OUT_SIZE, XenconsInterface};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    GuestWrites(Vec<u8>),
    HostTakes(usize),
    HostPuts(Vec<u8>),
    GuestReads,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..3000).prop_map(Step::GuestWrites),
        (0..3000usize).prop_map(Step::HostTakes),
        proptest::collection::vec(any::<u8>(), 0..1500).prop_map(Step::HostPuts),
        Just(Step::GuestReads),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_honest_guest_sees_two_queues(start in any::<u32>(), steps in proptest::collection::vec(step(), 1..40)) {
        let page = XenconsInterface::default();
        for index in [Index::InCons, Index::InProd, Index::OutCons, Index::OutProd] {
            page.guest_set(index, start);
        }
        let mut ring = BackendRing::new(page);
        let (mut out, mut input) = (VecDeque::new(), VecDeque::new());
        for step in steps {
            match step {
                Step::GuestWrites(bytes) => {
                    let count = ring.memory().guest_write(&bytes);
                    prop_assert_eq!(count, bytes.len().min(OUT_SIZE - out.len()));
                    out.extend(&bytes[..count]);
                }
                Step::HostTakes(most) => {
                    let mut buffer = vec![0; most];
                    let count = ring.take(&mut buffer).unwrap();
                    prop_assert_eq!(count, most.min(out.len()));
                    prop_assert_eq!(&buffer[..count], &out.drain(..count).collect::<Vec<u8>>()[..]);
                }
                Step::HostPuts(bytes) => {
                    let count = ring.put(&bytes).unwrap();
                    prop_assert_eq!(count, bytes.len().min(IN_SIZE - input.len()));
                    input.extend(&bytes[..count]);
                }
                Step::GuestReads => {
                    prop_assert_eq!(ring.memory().guest_read(), input.drain(..).collect::<Vec<u8>>());
                }
            }
        }
    }

    #[test]
    fn any_indices_are_survived(indices in any::<[u32; 4]>(), most in 0..5000usize) {
        let page = XenconsInterface::default();
        let names = [Index::InCons, Index::InProd, Index::OutCons, Index::OutProd];
        for (name, value) in names.into_iter().zip(indices) {
            page.guest_set(name, value);
        }
        let mut ring = BackendRing::new(page);
        let taken = ring.take(&mut vec![0; most]);
        let put = ring.put(&vec![0; most]);
        prop_assert_eq!(taken.is_ok(), indices[3].wrapping_sub(indices[2]) as usize <= OUT_SIZE);
        prop_assert_eq!(put.is_ok(), indices[1].wrapping_sub(indices[0]) as usize <= IN_SIZE);
    }
}
