//! The handshake of secondary consoles, as a function of what both ends wrote to xenstore.
//!
//! ```text
//!  frontend writes state        this side                       backend state
//!  (none), 1 Initialising   →   release the ring, if any     →  2 InitWait
//!  3 Initialised + offer    →   map the ring, bind the port  →  4 Connected
//!  4 Connected  + offer     →   the same (this side restarted)  4 Connected
//!  5 Closing                →   drain, release               →  5 Closing
//!  6 Closed                 →   drain, release               →  6 Closed
//!  any, toolstack closes    →   as soon as the frontend did  →  6 Closed
//! ```
//! Consoles use the states up to 6; a frontend in a later one counts as one without a state. An *offer* is the frontend's `ring-ref` and `port`.
//! Nothing here trusts an order: each call looks at the whole picture, so that missed and repeated watch events,
//! a restart of this process and an invalid frontend all end in a defined step.

use xen_types::{EventPort, GrantRef};
use xenbus::XenbusState;

/// What a frontend offers to be connected with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The ring's page.
    pub ring: GrantRef,
    /// The frontend's unbound port.
    pub port: EventPort,
}

/// What both ends wrote to xenstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picture {
    /// The backend's `state`; absent when the toolstack took the device away.
    pub backend: Option<XenbusState>,
    /// Whether the toolstack wants the device (`online`; absent counts as wanted).
    pub online: bool,
    /// The frontend's `state`; absent or nonsense is none.
    pub frontend: Option<XenbusState>,
    /// The frontend's offer, when it is complete and made of numbers.
    pub offer: Option<Offer>,
}

/// What this side has done so far for one secondary console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// No ring is mapped.
    #[default]
    None,
    /// The ring of this offer is mapped.
    Connected {
        /// What was mapped and bound.
        offer: Offer,
        /// Whether the frontend was seen in state 4 since. If it goes back to 3 after that, it made a new ring,
        /// even if the numbers are the old ones.
        confirmed: bool,
    },
    /// This offer could not be mapped, or its ring was corrupted. It is not tried again.
    Refused(Offer),
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything is as it should be.
    Rest,
    /// Remember that the frontend confirmed.
    Confirm,
    /// Write the backend's state.
    Write(XenbusState),
    /// Map and bind this, then write state 4; when that fails, remember the refusal and write state 6.
    Connect(Offer),
    /// Drain and release the ring, then write the backend's state, if any.
    Disconnect(Option<XenbusState>),
    /// The device is gone: drain, release and forget it.
    Forget,
}

/// Decides the next step. Calling it again after the step was done leads to [`Step::Rest`].
#[must_use]
pub fn next_step(picture: &Picture, link: &Link) -> Step {
    use XenbusState as S;
    let Some(backend) = picture.backend else { return Step::Forget };
    let frontend = picture.frontend.filter(|state| *state <= S::Closed);
    if !picture.online || (backend == S::Closing && frontend.is_none_or(|state| state < S::Closing)) {
        return close(frontend, link, backend);
    }
    match frontend {
        None | Some(S::Initialising | S::Reconfiguring | S::Reconfigured) => {
            settle(link, backend, S::InitWait)
        }
        // The frontend's own waiting state has no meaning for a console.
        Some(S::InitWait) => Step::Rest,
        Some(S::Closing) => settle(link, backend, S::Closing),
        Some(S::Closed) => settle(link, backend, S::Closed),
        Some(frontend @ (S::Initialised | S::Connected)) => connect(picture.offer, link, backend, frontend),
    }
}

/// Releases a ring and brings the backend to a state without one.
fn settle(link: &Link, backend: XenbusState, wanted: XenbusState) -> Step {
    match link {
        Link::None if backend == wanted => Step::Rest,
        Link::None => Step::Write(wanted),
        Link::Connected { .. } | Link::Refused(_) => Step::Disconnect((backend != wanted).then_some(wanted)),
    }
}

fn connect(offer: Option<Offer>, link: &Link, backend: XenbusState, frontend: XenbusState) -> Step {
    let confirmed_now = frontend == XenbusState::Connected;
    match (*link, offer) {
        (Link::None, None) => Step::Rest,
        (Link::None, Some(offer)) => Step::Connect(offer),
        (Link::Refused(refused), offer) if offer.is_none_or(|offer| offer == refused) => {
            if backend == XenbusState::Closed { Step::Rest } else { Step::Write(XenbusState::Closed) }
        }
        (Link::Refused(_), _) => Step::Disconnect(None),
        // The frontend takes its offer back in the middle of everything: bytes in the ring still count.
        (Link::Connected { .. }, None) => Step::Rest,
        (Link::Connected { offer: mapped, confirmed }, Some(offer)) => {
            if offer != mapped || (confirmed && !confirmed_now) {
                Step::Disconnect(None)
            } else if backend != XenbusState::Connected {
                Step::Write(XenbusState::Connected)
            } else if confirmed_now && !confirmed {
                Step::Confirm
            } else {
                Step::Rest
            }
        }
    }
}

/// The toolstack takes the device away in order: the frontend is told and given the time to write its last bytes.
/// How long that may take is the toolstack's decision; it ends the wait by removing the device.
fn close(frontend: Option<XenbusState>, link: &Link, backend: XenbusState) -> Step {
    use XenbusState as S;
    let frontend_open = matches!(frontend, Some(S::Initialised | S::Connected));
    match link {
        Link::Connected { .. } if frontend_open && backend == S::Closing => Step::Rest,
        Link::Connected { .. } if frontend_open => Step::Write(S::Closing),
        _ => settle(link, backend, S::Closed),
    }
}

#[cfg(test)]
mod tests {
    use XenbusState as S;
    use proptest::prelude::*;

    use super::*;

    const OFFER: Offer = Offer { ring: GrantRef(8), port: EventPort(5) };
    const OTHER: Offer = Offer { ring: GrantRef(9), port: EventPort(5) };

    fn picture(backend: S, frontend: Option<S>, offer: Option<Offer>) -> Picture {
        Picture { backend: Some(backend), online: true, frontend, offer }
    }

    /// Does steps, successfully, until there is nothing to do; gives the backend's last state and the link.
    fn run(mut picture: Picture, mut link: Link) -> (Option<S>, Link) {
        for _ in 0..8 {
            match next_step(&picture, &link) {
                Step::Rest => return (picture.backend, link),
                Step::Forget => return (None, Link::None),
                Step::Write(state) => picture.backend = Some(state),
                Step::Confirm => {
                    let Link::Connected { confirmed, .. } = &mut link else { panic!("nothing to confirm") };
                    *confirmed = true;
                }
                Step::Connect(offer) => {
                    link = Link::Connected { offer, confirmed: false };
                    picture.backend = Some(S::Connected);
                }
                Step::Disconnect(state) => {
                    link = Link::None;
                    picture.backend = state.or(picture.backend);
                }
            }
        }
        panic!("no rest for {picture:?} {link:?}");
    }

    #[test]
    fn a_frontend_comes_goes_and_comes_back() {
        let (backend, link) = run(picture(S::Initialising, Some(S::Initialising), None), Link::None);
        assert_eq!((backend, link), (Some(S::InitWait), Link::None));
        let (backend, link) = run(picture(S::InitWait, Some(S::Initialised), Some(OFFER)), link);
        assert_eq!((backend, link), (Some(S::Connected), Link::Connected { offer: OFFER, confirmed: false }));
        let (_, link) = run(picture(S::Connected, Some(S::Connected), Some(OFFER)), link);
        assert_eq!(link, Link::Connected { offer: OFFER, confirmed: true });
        let (backend, link) = run(picture(S::Connected, Some(S::Closed), Some(OFFER)), link);
        assert_eq!((backend, link), (Some(S::Closed), Link::None));
        let (backend, _) = run(picture(S::Closed, Some(S::Initialised), Some(OTHER)), link);
        assert_eq!(backend, Some(S::Connected));
    }

    #[test]
    fn a_restarted_backend_connects_again_at_once() {
        let seen = picture(S::Connected, Some(S::Connected), Some(OFFER));
        assert_eq!(next_step(&seen, &Link::None), Step::Connect(OFFER));
    }

    #[test]
    fn a_resumed_frontend_gets_a_new_link_even_with_old_numbers() {
        let seen = picture(S::Connected, Some(S::Initialised), Some(OFFER));
        let had = Link::Connected { offer: OFFER, confirmed: true };
        assert_eq!(next_step(&seen, &had), Step::Disconnect(None));
        assert_eq!(next_step(&seen, &Link::Connected { offer: OFFER, confirmed: false }), Step::Rest);
    }

    #[test]
    fn a_refused_offer_is_not_tried_again() {
        let (backend, link) =
            run(picture(S::Connected, Some(S::Connected), Some(OFFER)), Link::Refused(OFFER));
        assert_eq!((backend, link), (Some(S::Closed), Link::Refused(OFFER)));
        let (backend, _) = run(picture(S::Closed, Some(S::Initialised), Some(OTHER)), link);
        assert_eq!(backend, Some(S::Connected));
    }

    #[test]
    fn the_toolstack_takes_a_console_away() {
        let mut seen = picture(S::Connected, Some(S::Connected), Some(OFFER));
        seen.online = false;
        let (backend, link) = run(seen, Link::Connected { offer: OFFER, confirmed: true });
        assert_eq!(backend, Some(S::Closing));
        seen.backend = backend;
        seen.frontend = Some(S::Closed);
        assert_eq!(run(seen, link), (Some(S::Closed), Link::None));
        seen.backend = None;
        assert_eq!(next_step(&seen, &link), Step::Forget);
    }

    #[test]
    fn a_state_that_consoles_do_not_use_counts_as_none() {
        for strange in [S::Reconfiguring, S::Reconfigured] {
            for backend in [S::InitWait, S::Connected, S::Closing] {
                let of = |frontend| next_step(&picture(backend, frontend, Some(OFFER)), &Link::None);
                assert_eq!(of(Some(strange)), of(None), "{strange:?} {backend:?}");
            }
        }
    }

    fn any_state() -> impl Strategy<Value = S> {
        proptest::sample::select(&S::ALL[..])
    }

    fn any_offer() -> impl Strategy<Value = Option<Offer>> {
        prop_oneof![Just(None), Just(Some(OFFER)), Just(Some(OTHER))]
    }

    fn any_link() -> impl Strategy<Value = Link> {
        prop_oneof![
            Just(Link::None),
            Just(Link::Refused(OFFER)),
            any::<bool>().prop_map(|confirmed| Link::Connected { offer: OFFER, confirmed })
        ]
    }

    proptest! {
        #[test]
        fn every_picture_comes_to_rest_in_few_steps(
            backend in proptest::option::of(any_state()),
            online in any::<bool>(),
            frontend in proptest::option::of(any_state()),
            offer in any_offer(),
            link in any_link(),
        ) {
            run(Picture { backend, online, frontend, offer }, link);
        }
    }
}
