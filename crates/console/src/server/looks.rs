//! Looking at consoles in xenstore beside serving rings.
//!
//! The loop waits for one answer of xenstored at a time, however many a console needs: where they come slowly, the look
//! ends after one of them, what was read is kept, and the look goes on from there in a later turn. So a console is
//! found however long all its answers take together, and rings have the loop in between.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use thiserror::Error;
use xen_types::DomId;
use xenstore::{StoreError, XsPath};

use super::id::ConsoleId;

/// How long the loop looks at consoles in one turn, if more are to be looked at.
const LOOK_TIME: Duration = Duration::from_millis(50);

/// Why a look at a console has ended before its end.
#[derive(Debug, Error)]
pub(crate) enum LookError {
    /// It is the rings' turn. The look goes on later.
    #[error("Rings have the loop now")]
    Later,
    /// xenstored does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was read of a console. A value that is absent, or makes no sense, is known too.
type Values = BTreeMap<XsPath, Option<Vec<u8>>>;

/// How the loop shares its time between xenstore and rings: when xenstored is slow, or many consoles are to be looked at,
/// rings have the loop for at least as long.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// When the looks of this turn began; `None` where nothing else is to be done, as at the start.
    began: Option<Instant>,
    /// Whether xenstored was asked for something since.
    has_asked: Cell<bool>,
    /// Rings have the loop.
    rests: bool,
    /// What was read of consoles at which the look is not at its end.
    known: RefCell<BTreeMap<ConsoleId, Values>>,
}

impl Looks {
    pub(crate) const fn rests(&self) -> bool {
        self.rests
    }

    pub(crate) const fn end_rest(&mut self) {
        self.rests = false;
    }

    /// Begins the looks of a turn.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.has_asked.set(false);
    }

    /// Ends them. Returns how long rings have the loop now, if they were long.
    pub(crate) fn end(&mut self) -> Option<Duration> {
        let took = self.began.take()?.elapsed();
        self.rests |= took >= LOOK_TIME;
        (took >= LOOK_TIME).then_some(took)
    }

    /// Whether something else is to be done than to look.
    pub(crate) const fn is_limited(&self) -> bool {
        self.began.is_some()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.began.is_some_and(|began| began.elapsed() >= LOOK_TIME)
    }

    /// Fails when the time of this turn is up. Whatever takes how long, the first who asks has time in each turn: a
    /// look that goes on later comes to an end.
    pub(crate) fn must_have_time(&self) -> Result<(), LookError> {
        let is_first = !self.has_asked.replace(true);
        if is_first || !self.is_up() { Ok(()) } else { Err(LookError::Later) }
    }

    /// What is known of a console, or is read now.
    pub(crate) fn read(
        &self,
        id: ConsoleId,
        path: &XsPath,
        read: impl FnOnce() -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Option<Vec<u8>>, LookError> {
        if let Some(value) = self.known.borrow().get(&id).and_then(|values| values.get(path)) {
            return Ok(value.clone());
        }
        self.must_have_time()?;
        let value = read()?;
        self.known.borrow_mut().entry(id).or_default().insert(path.clone(), value.clone());
        Ok(value)
    }

    /// Something of the console has changed, or the look at it is at its end.
    pub(crate) fn forget(&self, id: ConsoleId) {
        self.known.borrow_mut().remove(&id);
    }

    pub(crate) fn forget_domain(&self, domid: DomId) {
        self.known.borrow_mut().retain(|id, _| id.domid != domid);
    }

    /// Nobody knows what has changed.
    pub(crate) fn forget_all(&self) {
        self.known.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_AGO: Duration = Duration::from_secs(1);

    fn id(number: u32) -> ConsoleId {
        ConsoleId { domid: DomId::new(1).unwrap(), number }
    }

    fn path() -> XsPath {
        XsPath::new("/a").unwrap()
    }

    fn answer(text: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(Some(text.to_vec()))
    }

    #[test]
    fn each_turn_has_time_for_one_answer() {
        let mut looks = Looks::default();
        for _ in 0..2 {
            looks.begin(Instant::now() - LONG_AGO);
            assert!(looks.must_have_time().is_ok());
            assert!(matches!(looks.must_have_time(), Err(LookError::Later)));
            assert!(looks.end().unwrap() >= LONG_AGO);
            assert!(looks.rests());
        }
        // Where nothing else is to be done there is time.
        assert!(looks.must_have_time().is_ok());
        assert!(looks.end().is_none());
    }

    #[test]
    fn what_was_read_is_known_until_something_changes() {
        let looks = Looks::default();
        let of =
            |number, text: &'static [u8]| looks.read(id(number), &path(), || answer(text)).unwrap().unwrap();
        assert_eq!(of(0, b"1"), b"1");
        assert_eq!(of(0, b"2"), b"1");
        assert_eq!(of(1, b"2"), b"2");
        looks.forget(id(0));
        assert_eq!((of(0, b"3"), of(1, b"3")), (b"3".to_vec(), b"2".to_vec()));
        looks.forget_domain(id(0).domid);
        assert_eq!((of(0, b"4"), of(1, b"4")), (b"4".to_vec(), b"4".to_vec()));
    }

    #[test]
    fn known_values_take_no_time() {
        let mut looks = Looks::default();
        looks.begin(Instant::now() - LONG_AGO);
        let read = |looks: &Looks, number| looks.read(id(number), &path(), || answer(b"1"));
        assert!(read(&looks, 0).is_ok());
        assert!(read(&looks, 0).is_ok());
        assert!(matches!(read(&looks, 1), Err(LookError::Later)));
        looks.begin(Instant::now() - LONG_AGO);
        assert!(read(&looks, 0).is_ok());
        assert!(read(&looks, 1).is_ok());
    }
}
