/// What a peer's messages may be. Everything beyond is refused before it is stored.
///
/// The defaults hold what QEMU 7.2 to 10 says: its largest answer, that of `query-qmp-schema`, is about 300 KB, 4 deep,
/// with some 20,000 keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message.
    pub message: usize,
    /// Objects and arrays inside each other.
    pub depth: usize,
    /// Values of one message: those of members and of arrays' places.
    pub values: usize,
    /// Keys of all objects of one message.
    pub keys: usize,
    /// Keys of one object.
    pub object_keys: usize,
    /// Bytes of one string as it is written, escapes counted as such.
    pub string: usize,
    /// Bytes of one number as it is written.
    pub number: usize,
    /// Messages that are of no kind that QMP knows, beyond those that are of one: what is short and means nothing
    /// would cost more to hand out than its bytes do.
    pub nonsense: usize,
    /// Events that may wait for one reader; the oldest are dropped beyond.
    pub events: usize,
}

impl Limits {
    /// For what QEMU says.
    pub const QEMU: Self = Self {
        message: 1 << 20,
        depth: 32,
        values: 1 << 17,
        keys: 1 << 16,
        object_keys: 256,
        string: 256 << 10,
        number: 64,
        nonsense: 1000,
        events: 256,
    };

    /// For what a local client asks.
    pub const CLIENT: Self = Self { message: 256 << 10, values: 1 << 14, keys: 4096, ..Self::QEMU };
}

impl Default for Limits {
    fn default() -> Self {
        Self::QEMU
    }
}
