use core::ops::Range;

use crate::source::Span;

/// The value of a string, which knows where in the file each of its bytes was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    value: String,
    segments: Vec<Segment>,
}

/// From `decoded` on, bytes of the value stand at `source` on in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    decoded: usize,
    source: usize,
    /// The one byte of this segment was written as an escape of two.
    escape: bool,
}

impl Text {
    /// Makes a text that stands in the file as it is.
    pub(crate) fn verbatim(value: &str, start: usize) -> Self {
        Self { value: value.to_owned(), segments: vec![Segment { decoded: 0, source: start, escape: false }] }
    }

    /// The value.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.value
    }

    /// Where in the file a part of the value was written.
    #[must_use]
    pub fn span(&self, part: Range<usize>) -> Span {
        let start = self.locate(part.start).0;
        let end = match part.end.checked_sub(1) {
            Some(last) if part.end > part.start => {
                let (at, escape) = self.locate(last);
                at + if escape { 2 } else { 1 }
            }
            _ => start,
        };
        Span::new(start, end)
    }

    fn locate(&self, decoded: usize) -> (usize, bool) {
        let index = self.segments.partition_point(|segment| segment.decoded <= decoded);
        let segment = index.checked_sub(1).and_then(|i| self.segments.get(i)).copied();
        segment.map_or((0, false), |s| (s.source + (decoded - s.decoded), s.escape && decoded == s.decoded))
    }

    /// Adds a character that stands at `source` as it is.
    pub(crate) fn push(&mut self, c: char, source: usize) {
        let decoded = self.value.len();
        let follows =
            self.segments.last().is_some_and(|s| !s.escape && s.source + (decoded - s.decoded) == source);
        if !follows {
            self.segments.push(Segment { decoded, source, escape: false });
        }
        self.value.push(c);
    }

    /// Adds a character that was written as a backslash at `source` and one more byte.
    pub(crate) fn push_escape(&mut self, c: char, source: usize) {
        self.segments.push(Segment { decoded: self.value.len(), source, escape: true });
        self.value.push(c);
    }

    /// Adds another text, as `+=` does.
    pub(crate) fn append(&mut self, other: &Self) {
        let base = self.value.len();
        self.value.push_str(&other.value);
        self.segments.extend(other.segments.iter().map(|s| Segment { decoded: s.decoded + base, ..*s }));
    }
}
