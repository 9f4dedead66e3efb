//! Measurements that need a program in dom0. Each figure is a line `@ ID VALUE UNIT`.

mod console;
mod core_file;
mod sources;

use anyhow::{Result, bail};

/// Measures what is asked for, `runs` times; of consoles, only the parts that are named, if any are.
pub(crate) fn main(what: &[String], runs: u32) -> Result<()> {
    match what {
        [what, parts @ ..] if what == "console" => console::measure(runs, parts),
        [what, id, file] if what == "touched" => {
            let kib = core_file::touched(file.as_ref())?;
            figure(&format!("touched.{id}"), sources::precise(kib) / 1024.0, "MiB");
            Ok(())
        }
        _ => bail!(
            "vm-tests measure console [{}], or vm-tests measure touched ID FILE",
            console::PARTS.map(|(name, _)| name).join("|")
        ),
    }
}

/// Says a figure.
fn figure(id: &str, value: f64, unit: &str) {
    println!("@ {id} {value:.4} {unit}");
}
