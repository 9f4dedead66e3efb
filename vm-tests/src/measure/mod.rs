//! Measurements that need a program in dom0. Each figure is a line `@ ID VALUE UNIT`.

mod console;
mod sources;

use anyhow::{Result, bail};

/// Measures what is asked for, `runs` times; of consoles, only the parts that are named, if any are.
pub(crate) fn main(what: &[String], runs: u32) -> Result<()> {
    match what {
        [what, parts @ ..] if what == "console" => console::measure(runs, parts),
        _ => bail!("vm-tests measure console [{}]", console::PARTS.map(|(name, _)| name).join("|")),
    }
}

/// Says a figure.
fn figure(id: &str, value: f64, unit: &str) {
    println!("@ {id} {value:.4} {unit}");
}
