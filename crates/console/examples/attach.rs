//! Shows a console on this terminal: `attach DOMID NUMBER [--no-follow | --read-only]`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::Path;

use console::attach::{AttachOptions, SOCKET_DIR, attach, connect};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [domid, number, flags @ ..] = args.as_slice() else {
        return Err("attach DOMID NUMBER [--no-follow]".into());
    };
    let has = |flag: &str| flags.iter().any(|given| given == flag);
    let options =
        AttachOptions { follow: !has("--no-follow"), input: !has("--read-only"), ..AttachOptions::default() };
    let stream = connect(Path::new(SOCKET_DIR), domid.parse()?, number.parse()?)?;
    let ended = attach(&stream, &options)?;
    eprintln!("\r\nended: {ended:?}\r");
    Ok(())
}
