//! What clients say at the console daemon's control socket, the keys of outputs, and framed streams.
#![no_main]

use console::output::{Output, Plan};
use console::request::Request;
use stubdom_abi::stream::{Decoder, Encoder, Piece};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(request) = Request::parse(&text) {
        assert_eq!(Request::parse(request.to_string().trim_end()), Ok(request));
    }
    let mut lines = text.lines();
    let read = Plan::read(|_| Ok::<_, ()>(lines.next().map(str::to_owned)));
    if let Ok((Plan { output: Output::File(path) | Output::Socket(path) | Output::Pipe(path), .. }, _)) = read {
        assert!(path.is_absolute());
    }
    // As a stream: nothing but what is sent comes out, and no piece is larger than a frame.
    let (mut decoder, mut rest) = (Decoder::default(), data);
    while let Ok((used, piece)) = decoder.take(rest) {
        if let Piece::Data(bytes) = &piece {
            assert!(bytes.len() <= stubdom_abi::stream::CHUNK_MAX);
        }
        rest = &rest[used..];
        if rest.is_empty() || matches!(piece, Piece::End { .. }) {
            break;
        }
    }
    let mut encoder = Encoder::default();
    let mut stream = Vec::new();
    encoder.data(data, &mut stream);
    encoder.end(&mut stream);
    let (mut decoder, mut rest, mut all) = (Decoder::default(), stream.as_slice(), Vec::new());
    while !decoder.is_complete() {
        let (used, piece) = decoder.take(rest).expect("a stream is read as it was written");
        rest = &rest[used..];
        if let Piece::Data(bytes) = piece {
            all.extend(bytes);
        }
    }
    assert_eq!(all, data);
});
