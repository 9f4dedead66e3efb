//! Random histories of guests, strangers, daemons and the host: nothing that belongs to a stranger is ever touched.

use std::sync::atomic::{AtomicU32, Ordering};

use config::Uuid;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use toolstack::operation::{Faults, Side};
use toolstack::{CreateOptions, Guest, Toolstack, Turn};
use xen::Hypervisor as _;
use xen_types::DomId;

use crate::strangers::{
    Recording, Stranger, ask_everything, create, destroy_as_xl, destroy_ours_as_xl, start_daemon,
};
use crate::world::{Stubs, World};

/// An event. The guest, stranger, domid or step is chosen from those that exist.
#[derive(Clone, Debug)]
enum Happens {
    /// A guest is created, with a UUID of its own or a fixed one.
    Create {
        name: u8,
        fixed_uuid: bool,
    },
    /// A guest is destroyed, restarted, or gets every request.
    Destroy(u8),
    Restart(u8),
    Everything(u8),
    /// `xl destroy` of both its domains, or of one; or Xen loses them and their nodes stay.
    DestroyedByXl(u8),
    StubDestroyedByXl(u8),
    Lost(u8),
    /// Another toolstack creates a guest: with the domid of one of ours that is gone, or a free one; with the UUID in
    /// our configurations, or its own.
    StrangerComes {
        number: u8,
        same_uuid: bool,
        paused: bool,
    },
    StrangerGoes(u8),
    /// The daemon dies at a step of a create or a destroy, and a new one starts.
    CreateIsCutOff {
        name: u8,
        step: u8,
    },
    DestroyIsCutOff {
        guest: u8,
        step: u8,
    },
    /// A new daemon starts.
    DaemonStarts,
    /// The host restarts; sometimes strangers are created before our daemon starts.
    HostReboots {
        strangers: u8,
    },
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0..3_u8, any::<bool>()).prop_map(|(name, fixed_uuid)| Happens::Create { name, fixed_uuid }),
        2 => any::<u8>().prop_map(Happens::Destroy),
        1 => any::<u8>().prop_map(Happens::Restart),
        1 => any::<u8>().prop_map(Happens::Everything),
        2 => any::<u8>().prop_map(Happens::DestroyedByXl),
        1 => any::<u8>().prop_map(Happens::StubDestroyedByXl),
        1 => any::<u8>().prop_map(Happens::Lost),
        4 => (any::<u8>(), prop::bool::weighted(0.3), any::<bool>()).prop_map(
            |(number, same_uuid, paused)| Happens::StrangerComes { number, same_uuid, paused }
        ),
        1 => any::<u8>().prop_map(Happens::StrangerGoes),
        2 => (0..3_u8, any::<u8>()).prop_map(|(name, step)| Happens::CreateIsCutOff { name, step }),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(guest, step)| Happens::DestroyIsCutOff { guest, step }),
        3 => Just(Happens::DaemonStarts),
        2 => (0..4_u8).prop_map(|strangers| Happens::HostReboots { strangers }),
    ]
}

struct History {
    world: World,
    /// All guests ever created, with the domids that they had.
    guests: Vec<Guest>,
    strangers: Vec<Stranger>,
    made: u128,
}

/// Over all histories: guests created, and domids reused by strangers. Without these the test would prove nothing.
static SEEN: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

fn configuration(name: u8, fixed_uuid: bool) -> String {
    let vifname = if name == 0 { ",vifname=named" } else { "" };
    let uuid = if fixed_uuid { format!("uuid='{}'", fixed(name)) } else { String::new() };
    format!(
        "type='hvm'\nname='guest{name}'\nmemory=16\n{uuid}\n\
         disk=['/srv/a{name}.img,raw,hda,rw','script=block-x,vdev=xvde,target=v:{name}']\n\
         vif=['bridge=xenbr0{vifname}','script=vif-route,ip=10.0.0.2']"
    )
}

fn fixed(name: u8) -> Uuid {
    Uuid::from_u128(0xf1_0000 + u128::from(name))
}

impl History {
    fn new() -> Self {
        let world = World::new(Stubs::Work);
        for name in 0..3 {
            world.host.put_file(format!("/srv/a{name}.img"), &[0; 1024]);
        }
        Self { world, guests: Vec::new(), strangers: Vec::new(), made: 0 }
    }

    fn pick(&self, which: u8) -> Option<Guest> {
        let guests: Vec<Guest> =
            self.world.toolstack.guests().unwrap().into_iter().map(|i| i.guest).collect();
        (!guests.is_empty()).then(|| guests[usize::from(which) % guests.len()].clone())
    }

    fn is_theirs(&self, domid: DomId) -> bool {
        self.strangers.iter().any(|stranger| stranger.domid == domid)
    }

    fn known(&mut self, guest: Result<Guest, toolstack::Error>) {
        SEEN[0].fetch_add(u32::from(guest.is_ok()), Ordering::Relaxed);
        self.guests.extend(guest.ok());
    }

    /// A domid for a stranger: one that a guest of ours had, if it is free, or a free one.
    fn free_number(&self, which: u8) -> DomId {
        let ours = self.guests.iter().flat_map(|guest| [guest.domid, guest.stub_domid]);
        let low = (1..60).map(|domid| DomId::new(domid).unwrap());
        let is_free = |domid: &DomId| self.world.hypervisor.domain_info(*domid).unwrap().is_none();
        let reused: Vec<DomId> = ours.filter(is_free).collect();
        if reused.is_empty() || which.is_multiple_of(4) {
            return low.into_iter().find(is_free).unwrap();
        }
        reused[usize::from(which) % reused.len()]
    }

    fn stranger_comes(&mut self, number: u8, same_uuid: bool, paused: bool) {
        let domid = if same_uuid {
            // Within a boot Xen reuses a domid after 32,751 others, and not for a domain with the same UUID.
            DomId::new(200 + u16::try_from(self.made % 100).unwrap()).unwrap()
        } else {
            self.free_number(number)
        };
        self.stranger_with(domid, number, same_uuid, paused);
    }

    fn stranger_with(&mut self, domid: DomId, number: u8, same_uuid: bool, paused: bool) {
        self.made += 1;
        let uuid = if same_uuid { fixed(number % 3) } else { Uuid::from_u128(0xaaaa_0000 + self.made) };
        let domains = self.world.hypervisor.list_domains().unwrap();
        // Two domains with one UUID at a time would be the user's mistake, not a reused domid.
        if domains.iter().all(|info| info.uuid != *uuid.as_bytes()) {
            let name = format!("stranger{}", self.made);
            let ours = |guest: &Guest| [guest.domid, guest.stub_domid].contains(&domid);
            SEEN[1].fetch_add(u32::from(self.guests.iter().any(ours)), Ordering::Relaxed);
            self.strangers.push(Stranger::make(&self.world, domid, uuid, &name, paused));
        }
    }

    fn cut_off(
        &mut self,
        step: &'static str,
        work: impl FnOnce(&Toolstack, &mut dyn FnMut(toolstack::Event)),
    ) {
        let toolstack = self.world.toolstack.clone().with_faults(Faults::none().at(step, Side::After));
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            work(&toolstack, &mut |event| {
                if let toolstack::Event::StepFailed { .. } = event {
                    std::panic::resume_unwind(Box::new(()));
                }
            });
        }));
    }

    /// Plays an event; the actions of another toolstack are not recorded.
    fn play(mut self, happens: &Happens) -> Self {
        match *happens {
            Happens::StrangerComes { number, same_uuid, paused } => {
                self.stranger_comes(number, same_uuid, paused);
                return self;
            }
            Happens::StrangerGoes(which) if !self.strangers.is_empty() => {
                let which = usize::from(which) % self.strangers.len();
                self.strangers.remove(which).destroy(&self.world);
                return self;
            }
            Happens::HostReboots { strangers } => {
                self.world = self.world.reboot();
                self.strangers.clear();
                for number in 0..strangers {
                    // The lowest domids, which our guests had before, and the UUIDs of our guests too.
                    let domid = DomId::new(u16::from(number) + 1).unwrap();
                    self.stranger_with(domid, number, number != 1, number == 2);
                }
            }
            Happens::DestroyedByXl(which) => {
                if let Some(guest) = self.pick(which).filter(|guest| self.lives(guest)) {
                    destroy_ours_as_xl(&self.world, &guest);
                }
                return self;
            }
            Happens::StubDestroyedByXl(which) => {
                if let Some(guest) = self.pick(which).filter(|guest| self.lives(guest)) {
                    destroy_as_xl(&self.world, guest.stub_domid, guest.stub_uuid);
                }
                return self;
            }
            Happens::Lost(which) => {
                if let Some(guest) = self.pick(which).filter(|guest| self.lives(guest)) {
                    for domid in [guest.stub_domid, guest.domid] {
                        self.world.hypervisor.destroy_domain(domid).unwrap();
                    }
                }
                return self;
            }
            _ => {}
        }
        let recording = Recording::begin(&self.world);
        self.act(happens);
        recording.check(&self.world, &self.strangers, &format!("{happens:?}"));
        self
    }

    fn lives(&self, guest: &Guest) -> bool {
        let ts = &self.world.toolstack;
        let there = |domid, uuid| ts.domain_info(domid, uuid).unwrap().is_some();
        there(guest.domid, guest.uuid) && there(guest.stub_domid, guest.stub_uuid)
    }

    fn act(&mut self, happens: &Happens) {
        match *happens {
            Happens::Create { name, fixed_uuid } => {
                let made = create(&self.world, &configuration(name, fixed_uuid));
                self.known(made);
            }
            Happens::Destroy(which) => {
                if let Some(guest) = self.pick(which) {
                    self.world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
                }
            }
            Happens::Restart(which) => {
                if let Some(guest) = self.pick(which) {
                    let again = self.world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ());
                    self.known(again);
                }
            }
            Happens::Everything(which) => {
                if let Some(guest) = self.pick(which).filter(|guest| self.is_theirs(guest.domid)) {
                    ask_everything(&self.world, guest.id());
                }
            }
            Happens::CreateIsCutOff { name, step } => {
                let steps = Toolstack::create_steps();
                let step = steps[usize::from(step) % steps.len()];
                let config = config::load_str("t", &configuration(name, true)).config.unwrap();
                self.cut_off(step, |toolstack, events| {
                    let _ = toolstack.create(&config, CreateOptions::default(), events);
                });
            }
            Happens::DestroyIsCutOff { guest, step } => {
                let steps = Toolstack::destroy_steps();
                let step = steps[usize::from(step) % steps.len()];
                if let Some(guest) = self.pick(guest) {
                    self.cut_off(step, |toolstack, events| {
                        let _ = toolstack.destroy(guest.id(), events);
                    });
                }
            }
            Happens::DaemonStarts | Happens::HostReboots { .. } => {
                let recovered = start_daemon(&self.world);
                assert!(recovered.troubles.is_empty(), "{:?}", recovered.troubles);
                self.guests.extend(recovered.guests);
            }
            _ => {}
        }
    }
}

#[test]
fn no_history_touches_what_belongs_to_strangers() {
    let histories = prop::collection::vec(happens(), 1..30);
    let config = ProptestConfig {
        cases: 96,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let outcome = TestRunner::new(config).run(&histories, |all| {
        let mut history = History::new();
        for happens in &all {
            history = history.play(happens);
        }
        // At the end nothing of ours is left, and everything of theirs.
        history = history.play(&Happens::DaemonStarts);
        while let Some(guest) = history.pick(0) {
            let recording = Recording::begin(&history.world);
            history.world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
            recording.check(&history.world, &history.strangers, "the end");
        }
        for stranger in history.strangers.drain(..) {
            stranger.destroy(&history.world);
        }
        prop_assert_eq!(history.world.hypervisor.leftovers(), Vec::<String>::new());
        let host = history.world.host.state();
        prop_assert!(host.loops.is_empty() && host.ports.is_empty(), "{:?} {:?}", host.loops, host.ports);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let [guests, reused] = SEEN.each_ref().map(|count| count.load(Ordering::Relaxed));
    println!("{guests} guests were created, {reused} of their domids were reused by strangers");
    assert!(guests > 40 && reused > 30, "{guests} guests were created, {reused} domids were reused");
}
