//! Saves of a domain that runs meanwhile.

use super::*;

/// Releases that do not record which pages a domain is given, and one that does.
const MINORS: [u16; 2] = [17, 22];

/// Lets this happen when a question is asked, saves, and compares with what the domain has then and `more`.
fn check(minor: u16, question: &'static str, change: fn(&mut Memory), more: &[(u64, u8)]) -> (Image, u64) {
    let mut fake = Fake::new(2000);
    fake.memory.borrow_mut().minor = minor;
    let mut events = Events::new(&fake, move |asked, memory| {
        if asked == question {
            change(memory);
        }
    });
    events.verdicts = vec![Verdict::Continue; 3];
    let image = saved(&mut fake, true, &mut events).expect("saved");
    let memory = fake.memory.borrow();
    let mut expected = memory.pages.clone();
    expected.extend(more.iter().copied());
    assert_eq!(image.pages, expected, "on 4.{minor}, at {question:?}");
    (image, memory.types)
}

#[test]
fn what_a_running_domain_writes_is_written_again() {
    let mut fake = Fake::new(2000);
    let mut events = Events::new(&fake, |question, memory| match question {
        "precopy 1 1976 None" => (300..310).for_each(|page| memory.write(page)),
        "precopy 2 1986 None" => (305..307).for_each(|page| memory.write(page)),
        "suspend" => memory.write(END - 1),
        _ => {}
    });
    events.verdicts = vec![Verdict::Continue; 5];
    let image = saved(&mut fake, true, &mut events).expect("saved");
    let expected = [
        "log-dirty true",
        "precopy 0 0 Some(1976)",
        "precopy 1 1976 None",
        "precopy 1 1976 Some(10)",
        "precopy 2 1986 None",
        "precopy 2 1986 Some(2)",
        "precopy 3 1988 None",
        "suspend",
        "log-dirty false",
    ];
    assert_eq!(events.asked, expected);
    assert_eq!(image.kinds, KINDS);
    let memory = fake.memory.borrow();
    assert_eq!((image.pages, image.written), (memory.pages.clone(), 1976 + 10 + 2 + 1));
    // The last check, of the pages that were written, found nothing that would have to be looked for.
    assert!(memory.types < 2 * 2000 + 4 * 1024 + 100, "{}", memory.types);
}

#[test]
fn memory_that_comes_and_goes_while_the_domain_runs_is_no_matter() {
    let mut fake = Fake::new(2000);
    // Given back between the survey and its writing.
    fake.change = RefCell::new(Box::new(|what, memory| {
        if what == "map" && memory.mapped == 0 {
            memory.pages.retain(|page, _| !(100..150).contains(page));
        }
    }));
    let mut events = Events::new(&fake, |question, memory| {
        if question.starts_with("precopy 1 ") && question.ends_with("None") {
            // Taken where it was, and elsewhere, of which Xen records nothing.
            memory.pages.extend([(110, 5), (0x9_0000, 6), (0x9_1000, 7), (1 << 20, 8)]);
            // Written, and then given back.
            memory.write(1500);
            memory.pages.remove(&1500);
        }
    });
    events.verdicts = vec![Verdict::Continue; 2];
    let image = saved(&mut fake, true, &mut events).expect("saved");
    let mut expected = fake.memory.borrow().pages.clone();
    // What was written before it was given back stays in the stream.
    expected.insert(1500, 1);
    assert_eq!(image.pages, expected);
}

/// As many pages as before, and nothing that was written and is gone was recorded.
#[test]
fn a_page_instead_of_one_that_was_given_back_is_noticed() {
    for minor in MINORS {
        for question in ["precopy 1 1976 None", "precopy 2 1976 None", "suspend"] {
            let moved = |memory: &mut Memory| {
                memory.give_back(500);
                memory.take(0x9_0000, 7);
            };
            check(minor, question, moved, &[(500, 1)]);
        }
    }
}

/// As when a BAR of the display's memory moves.
#[test]
fn pages_that_move_are_noticed() {
    for minor in MINORS {
        let moved = |memory: &mut Memory| {
            for page in 1000..1064 {
                memory.write(page);
                memory.give_back(page);
                memory.take(0xf_0000 + page, 9);
            }
        };
        let stale: Vec<(u64, u8)> = (1000..1064).map(|page| (page, 1)).collect();
        check(minor, "suspend", moved, &stale);
    }
}

#[test]
fn a_page_beyond_what_is_recorded_is_noticed() {
    for minor in MINORS {
        check(minor, "suspend", |memory| memory.take((1 << 20) + 5, 3), &[]);
    }
}

#[test]
fn a_page_that_came_again_has_its_new_contents_where_xen_records_that() {
    let again = |memory: &mut Memory| {
        memory.give_back(500);
        memory.take(500, 8);
    };
    check(22, "suspend", again, &[]);
}

#[test]
fn pages_that_come_and_go_during_the_survey_are_noticed() {
    for minor in MINORS {
        let mut fake = Fake::new(2000);
        fake.memory.borrow_mut().minor = minor;
        fake.change = RefCell::new(Box::new(|_, memory| {
            // One that was asked for already comes, one that was not yet asked for goes: the number stays.
            if memory.types == 1024 && memory.pages.contains_key(&1500) {
                memory.give_back(1500);
                memory.take(0xb0, 4);
            }
        }));
        let mut events = Events::new(&fake, |_, _| ());
        let image = saved(&mut fake, true, &mut events).expect("saved");
        assert_eq!(image.pages, fake.memory.borrow().pages);
    }
}

#[test]
fn where_xen_records_what_comes_nothing_is_asked_for_again() {
    let (image, types) = check(22, "precopy 1 1976 None", |memory| memory.take(0xb0, 2), &[]);
    assert_eq!(image.written, 1976 + 1);
    // A survey, and the one page.
    assert!(types < 2000 + 4 * 1024, "{types}");
}
