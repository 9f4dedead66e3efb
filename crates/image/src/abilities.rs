//! What a QEMU has, asked of it where the image is built.
//!
//! It runs with the libraries of its image and the image's own loader, with an empty environment, and opens no guest,
//! no disk and no connection.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use stubdom_abi::QemuAbilities;

use crate::{
    ImageError, Result,
    initramfs::{Initramfs, Node},
    tools::{complaint, run_within},
};

/// Devices that begin so need SPICE.
const OF_SPICE: &str = "qxl";
/// How long it may take for one answer; a second is usual.
const PATIENCE: Duration = Duration::from_secs(60);
/// The errors with which the kernel refuses to start programs of another processor (`ENOEXEC`).
const NO_EXEC: i32 = 8;

/// Asks a QEMU. Its libraries are those of the archive; `loader` is the file of the program that loads them. Nothing
/// comes back where it is for another processor than this machine's.
///
/// # Errors
/// That it cannot be run, or does not answer.
pub(crate) fn ask(
    archive: &Initramfs,
    loader: &Path,
    qemu: &Path,
    spice: bool,
) -> Result<Option<QemuAbilities>> {
    let limit = time_limit();
    let folder = tempfile::tempdir().map_err(ImageError::io("create a folder in", std::env::temp_dir()))?;
    lay_out(archive, folder.path())?;
    let mut answers = Vec::new();
    for question in [["-machine", "help"], ["-device", "help"], ["-drive", "format=help"]] {
        let Some(answer) = answer(limit, loader, folder.path(), qemu, question)? else { return Ok(None) };
        answers.push(answer);
    }
    let [machines, devices, formats] = answers.as_slice() else { return Ok(None) };
    let mut devices = self::devices(devices);
    if !spice {
        devices.retain(|device| !device.starts_with(OF_SPICE));
    }
    Ok(Some(QemuAbilities { machines: self::machines(machines), devices, formats: self::formats(formats) }))
}

/// [`PATIENCE`], stretched as all deadlines are.
fn time_limit() -> Duration {
    let scale = std::env::var("OUTRIGGER_TIME_SCALE").ok().and_then(|text| text.parse::<f64>().ok());
    PATIENCE.mul_f64(scale.filter(|scale| (0.01..=1000.0).contains(scale)).unwrap_or(1.0))
}

/// Puts all libraries of an archive into one folder.
fn lay_out(archive: &Initramfs, folder: &Path) -> Result<()> {
    for (path, _, node) in archive.entries() {
        let Some(name) = path.rsplit('/').next().filter(|name| name.contains(".so")) else { continue };
        let place = folder.join(name);
        match node {
            Node::Copy(host) => {
                let host = std::path::absolute(host).map_err(ImageError::io("find", host))?;
                symlink(&host, &place).map_err(ImageError::io("make the link", &place))?;
            }
            Node::Bytes(bytes) => fs::write(&place, bytes).map_err(ImageError::io("write", &place))?,
            Node::Directory | Node::Link(_) | Node::Device { .. } => {}
        }
    }
    Ok(())
}

fn answer(
    limit: Duration,
    loader: &Path,
    libraries: &Path,
    qemu: &Path,
    question: [&str; 2],
) -> Result<Option<String>> {
    let mut command = Command::new(loader);
    command
        .args(["--inhibit-cache", "--library-path"])
        .arg(libraries)
        .arg(qemu)
        .args(question)
        .env_clear()
        // A QEMU with modules would otherwise take the machine's.
        .envs([("LC_ALL", "C"), ("HOME", "/nonexistent"), ("QEMU_MODULE_DIR", "/nonexistent")]);
    let output = match run_within(limit, &mut command) {
        Err(error) if error.raw_os_error() == Some(NO_EXEC) => return Ok(None),
        Err(source) => return Err(ImageError::io("run", loader)(source)),
        Ok(None) => {
            return Err(ImageError::QemuSlow { question: question.join(" "), seconds: limit.as_secs() });
        }
        Ok(Some(output)) => output,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() && !text.is_empty() {
        return Ok(Some(text));
    }
    Err(ImageError::QemuSilent { question: question.join(" "), stderr: complaint(&output) })
}

/// Reads lines `NAME  DESCRIPTION` behind a heading.
fn machines(text: &str) -> Vec<String> {
    sorted(text.lines().filter(|line| !line.ends_with(':')).filter_map(|line| line.split_whitespace().next()))
}

/// Reads lines `name "NAME", bus BUS, alias "NAME", desc "TEXT"`, of which only the name is always there.
fn devices(text: &str) -> Vec<String> {
    let quoted = |line: &'_ str, key: &str| -> Option<String> {
        // What is behind it may have commas and quotes.
        let head = line.split(", desc \"").next()?;
        Some(head.split_once(key)?.1.split('"').next()?.to_owned())
    };
    let lines = text.lines().filter(|line| line.starts_with("name \""));
    let names: Vec<String> =
        lines.flat_map(|line| [quoted(line, "name \""), quoted(line, ", alias \"")]).flatten().collect();
    sorted(names.iter().map(String::as_str))
}

/// Reads the line `Supported formats: NAME NAME …`; those that may only be read follow in another.
fn formats(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("Supported formats:"));
    sorted(line.unwrap_or_default().split_whitespace())
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.map(str::to_owned).collect::<BTreeSet<String>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_answers_of_qemu_are_read() {
        let text = "Supported machines are:\nxenfv                Xen Fully-virtualized PC (alias of xenfv-3.1)\n\
                    xenfv-3.1            Xen Fully-virtualized PC\nnone                 empty machine\n";
        assert_eq!(machines(text), ["none", "xenfv", "xenfv-3.1"]);
        let text = "Network devices:\nname \"e1000\", bus PCI, alias \"e1000-82540em\", desc \"Intel, alias \"x\"\"\n\
                    name \"vmmouse\"\n\nMisc devices:\nname \"AC97\", bus PCI, alias \"ac97\"\n";
        assert_eq!(devices(text), ["AC97", "ac97", "e1000", "e1000-82540em", "vmmouse"]);
        let text = "Supported formats: host_device file raw\nSupported formats (read-only): vvfat\n\n";
        assert_eq!(formats(text), ["file", "host_device", "raw"]);
    }

    #[test]
    fn test_program_that_does_not_end_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("loader");
        fs::write(&program, "#!/bin/sh\nexec tail -f /dev/null\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let limit = Duration::from_millis(100);
        let error = answer(limit, &program, dir.path(), Path::new("/q"), ["-machine", "help"]).unwrap_err();
        assert!(matches!(error, ImageError::QemuSlow { .. }), "{error:?}");
    }

    #[test]
    fn test_program_that_does_not_answer_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let ask = |program: &Path| ask(&Initramfs::new(), program, Path::new("/q"), false);
        let error = ask(Path::new("/bin/false")).unwrap_err();
        assert!(matches!(error, ImageError::QemuSilent { .. }), "{error:?}");
        // Not for this processor, nor for any.
        let other = dir.path().join("other");
        fs::write(&other, "\x7fELF").unwrap();
        fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(ask(&other).unwrap(), None);
    }
}
