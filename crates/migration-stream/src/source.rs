use std::io::Read;

use crate::error::StreamError;

/// A reader that knows where it is and takes exactly what is asked for.
pub(crate) struct Source<'a, R> {
    from: &'a mut R,
    at: u64,
}

impl<'a, R: Read> Source<'a, R> {
    pub(crate) fn new(from: &'a mut R) -> Self {
        Self { from, at: 0 }
    }

    /// Bytes that were taken.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// As many bytes as asked for. The caller has bounded the length.
    pub(crate) fn bytes(&mut self, length: usize, what: &'static str) -> Result<Vec<u8>, StreamError> {
        let length = length as u64;
        let mut bytes = Vec::new();
        let result = self.from.by_ref().take(length).read_to_end(&mut bytes);
        let taken = bytes.len() as u64;
        self.at += taken;
        result.map_err(|source| StreamError::Read { what, offset: self.at, source })?;
        if taken < length {
            return Err(StreamError::Truncated { what, offset: self.at, missing: length - taken });
        }
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], StreamError> {
        let bytes = self.bytes(N, what)?;
        Ok(bytes.try_into().expect("as many bytes were read as asked for"))
    }

    /// A number in the order of its bytes that x86 has.
    pub(crate) fn u32_le(&mut self, what: &'static str) -> Result<u32, StreamError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A number in network order.
    pub(crate) fn u32_be(&mut self, what: &'static str) -> Result<u32, StreamError> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }
}
