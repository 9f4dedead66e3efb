//! What processes in dom0 cost.

use std::fs;

use anyhow::Result;

/// The processes that run now, without this one.
fn others() -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    found.retain(|pid| *pid != std::process::id());
    Ok(found)
}

/// Memory of all processes but this one in KiB, shared pages counted once.
pub(super) fn memory() -> Result<i64> {
    // One may end meanwhile; threads of the kernel have none.
    let texts =
        others()?.into_iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok());
    Ok(texts.filter_map(|text| proportional(&text)).sum())
}

fn proportional(rollup: &str) -> Option<i64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How many processes have this in their command lines.
pub(super) fn count(words: &str) -> Result<u32> {
    let has = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(words)
    };
    Ok(others()?.into_iter().map(|pid| u32::from(has(pid))).sum())
}

#[cfg(test)]
mod tests {
    #[test]
    fn shared_pages_are_counted_once() {
        let rollup =
            "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:  2048 kB\nPss:  512 kB\nPss_Dirty: 64 kB\n";
        assert_eq!(super::proportional(rollup), Some(512));
        assert_eq!(super::proportional(""), None);
    }
}
