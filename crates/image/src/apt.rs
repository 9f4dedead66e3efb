//! apt: that of the machine as it is, or one with lists and settings of its own for another Debian.
//!
//! The second one reads nothing of the machine's settings but how the network is reached and whether old lists will do,
//! and changes nothing outside of its folder in the cache. Its lists count only if Debian's own keys have signed them.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use crate::{
    Debian, ImageError, Result,
    files::create_dir_all,
    tools::{complaint, run, tells_of_full_disk},
};

/// Debian's keys, as Debian's own sources name them.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What the answers of the machine's apt depend on: its package lists, and its configuration.
const MACHINE: [&str; 2] = ["/var/lib/apt/lists", "/etc/apt"];
/// Where packages come from when nothing else is said.
const ARCHIVE: &str = "http://deb.debian.org/debian";
/// The same for security updates.
const SECURITY: &str = "http://deb.debian.org/debian-security";
/// Lists of our own are fetched again when they are this old.
const FRESH: Duration = Duration::from_secs(6 * 3600);
/// Settings of the machine's apt that hold for lists of our own too: how the network is reached, and whether lists may
/// be older than they say. The latter is for mirrors that are snapshots, and the mirror is the machine's.
const TAKEN_OVER: [&str; 4] =
    ["Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until", "Acquire::Check-Date"];

/// Mirrors for the packages of another Debian. The default for each is the mirror that the machine's own sources name,
/// or deb.debian.org if they name none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// A mirror of Debian's archive, such as `http://deb.debian.org/debian`.
    pub archive: Option<String>,
    /// A mirror of the archive of security updates.
    pub security: Option<String>,
}

/// An apt, and what it knows.
#[derive(Debug, Clone)]
pub(crate) struct Apt {
    debian: Debian,
    own: Option<Own>,
}

/// A folder with settings, sources and lists.
#[derive(Debug, Clone)]
struct Own {
    folder: PathBuf,
    mirrors: Mirrors,
}

impl Apt {
    /// The machine's; on a system that is none of the known Debians, one of our own for Debian 12.
    pub(crate) fn of_machine(cache: &Path) -> Self {
        match Debian::of_machine() {
            Some(debian) => Self { debian, own: None },
            None => Self::own(cache, Debian::Bookworm, Mirrors::default()),
        }
    }

    /// One for a certain Debian and certain mirrors; the machine's, if that is the same.
    pub(crate) fn of(cache: &Path, debian: Debian, mirrors: &Mirrors) -> Self {
        if *mirrors == Mirrors::default() && Debian::of_machine() == Some(debian) {
            return Self { debian, own: None };
        }
        Self::own(cache, debian, mirrors.clone())
    }

    fn own(cache: &Path, debian: Debian, mirrors: Mirrors) -> Self {
        let folder = cache.join("apt").join(debian.name());
        Self { debian, own: Some(Own { folder, mirrors }) }
    }

    pub(crate) fn debian(&self) -> Debian {
        self.debian
    }

    /// The folders that its answers depend on; `None` when that cannot be told.
    pub(crate) fn depends(&self) -> Option<Vec<PathBuf>> {
        match &self.own {
            Some(own) => Some(vec![own.lists(), own.etc()]),
            // Another configuration may keep the lists anywhere.
            None if env::var_os("APT_CONFIG").is_some() => None,
            None => Some(MACHINE.map(PathBuf::from).into()),
        }
    }

    /// Where lists of source packages are kept: the file that names where they come from, and their folder.
    pub(crate) fn source_lists(&self, cache: &Path) -> (PathBuf, PathBuf) {
        let folder =
            self.own.as_ref().map_or_else(|| cache.join("sources"), |own| own.folder.join("sources"));
        (folder.join("debian.sources"), folder.join("lists"))
    }

    /// One of apt's programs with nothing installed, without root, without locks, in English.
    pub(crate) fn command(&self, program: &str, status: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        if let Some(own) = &self.own {
            command.env("APT_CONFIG", own.settings());
        }
        let state = format!("Dir::State::status={}", status.display());
        let extended = format!("Dir::State::extended_states={}.extended", status.display());
        for option in [
            state.as_str(),
            extended.as_str(),
            "Debug::NoLocking=true",
            // The cache of the package lists belongs to root and to the real list of installed packages.
            "Dir::Cache::pkgcache=",
            "Dir::Cache::srcpkgcache=",
            // apt's own user cannot write to our cache; without root there is no other user anyway.
            "APT::Sandbox::User=root",
            "APT::Get::Assume-Yes=true",
            "Acquire::Retries=3",
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Fetches lists of our own, if they are old or missing. The machine's are left to the machine.
    ///
    /// # Errors
    /// That Debian's keys are missing, or that the lists cannot be fetched, or do not bear Debian's signature.
    pub(crate) fn refresh(&self) -> Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        create_dir_all(&own.lists().join("partial"))?;
        create_dir_all(&own.etc())?;
        let lock_path = own.folder.join("lock");
        let lock = File::create(&lock_path).map_err(ImageError::io("open", &lock_path))?;
        lock.lock().map_err(ImageError::io("lock", &lock_path))?;
        own.refresh(self)
    }
}

impl Own {
    fn etc(&self) -> PathBuf {
        self.folder.join("etc")
    }

    fn lists(&self) -> PathBuf {
        self.folder.join("lists")
    }

    fn settings(&self) -> PathBuf {
        self.etc().join("apt.conf")
    }

    fn sources(&self) -> PathBuf {
        self.etc().join("debian.sources")
    }

    fn refresh(&self, apt: &Apt) -> Result<()> {
        if !Path::new(KEYRING).exists() {
            return Err(ImageError::NoKeys { debian: apt.debian });
        }
        let status = self.folder.join("status");
        write_changed(&status, "")?;
        let machine = Apt { debian: apt.debian, own: None };
        let settings = settings(&self.folder, &taken_over(&machine, &status)?);
        let sources = sources(apt.debian, &self.mirrors, &sites(&machine, &status)?);
        let changed =
            [write_changed(&self.settings(), &settings)?, write_changed(&self.sources(), &sources)?];
        let stamp = self.folder.join("updated");
        let age =
            fs::metadata(&stamp).and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
        if !changed.contains(&true) && age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        let _ = fs::remove_file(&stamp);
        let output = run(apt.command("apt-get", &status).args(["update", "--quiet=2"]), "apt-get")?;
        check_update(&output, apt.debian, &self.lists())?;
        // apt only warns of it, and keeps its older lists.
        if String::from_utf8_lossy(&output.stderr).contains("Failed to fetch") {
            return Err(unfetched(apt.debian, String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        fs::write(&stamp, "").map_err(ImageError::io("write", &stamp))
    }
}

/// Whether `apt-get update` has done what it can. It also ends well when a mirror is out of reach, and keeps its older
/// lists.
pub(crate) fn check_update(output: &Output, debian: Debian, lists: &Path) -> Result<()> {
    if String::from_utf8_lossy(&output.stderr).contains("NO_PUBKEY") {
        return Err(ImageError::NoKeys { debian });
    }
    let stderr = complaint(output);
    if output.status.success() && !stderr.contains("E:") {
        return Ok(());
    }
    Err(if tells_of_full_disk(&stderr) {
        ImageError::DiskFull { path: lists.to_owned() }
    } else {
        unfetched(debian, stderr)
    })
}

fn unfetched(debian: Debian, stderr: String) -> ImageError {
    ImageError::Fetch { package: format!("the package lists of Debian {debian}"), stderr }
}

/// Writes a file, unless it says the same already.
fn write_changed(path: &Path, text: &str) -> Result<bool> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    fs::write(path, text).map_err(ImageError::io("write", path))?;
    Ok(true)
}

/// The machine's settings that are taken over, as lines of a configuration.
fn taken_over(machine: &Apt, status: &Path) -> Result<String> {
    let output = run(machine.command("apt-config", status).arg("dump"), "apt-config")?;
    Ok(lines_taken_over(&String::from_utf8_lossy(&output.stdout)))
}

fn lines_taken_over(dump: &str) -> String {
    let belongs = |line: &&str| {
        TAKEN_OVER.iter().any(|name| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with("::") || rest.starts_with(' '))
        })
    };
    dump.lines().filter(belongs).map(|line| format!("{line}\n")).collect()
}

/// The places that the machine's apt has Debian's packages from, as lines `origin|site|release`.
fn sites(machine: &Apt, status: &Path) -> Result<String> {
    let mut command = machine.command("apt-get", status);
    command.args(["indextargets", "--format", "$(ORIGIN)|$(SITE)|$(RELEASE)", "Created-By: Packages"]);
    Ok(String::from_utf8_lossy(&run(&mut command, "apt-get")?.stdout).into_owned())
}

/// Settings under which apt has everything in a folder and nothing from elsewhere.
fn settings(folder: &Path, more: &str) -> String {
    let folder = folder.display();
    let nothing = "\"/dev/null\"";
    format!(
        "// The machine's own settings are not read, so that hooks and pins of the machine have no effect.\n\
         Dir::Etc::main {nothing};\n\
         Dir::Etc::parts {nothing};\n\
         Dir::Etc::sourcelist \"{folder}/etc/debian.sources\";\n\
         Dir::Etc::sourceparts {nothing};\n\
         Dir::Etc::preferences {nothing};\n\
         Dir::Etc::preferencesparts {nothing};\n\
         Dir::Etc::trusted {nothing};\n\
         Dir::Etc::trustedparts {nothing};\n\
         Dir::State \"{folder}\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         Dir::Log {nothing};\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         Acquire::Languages \"none\";\n\
         {more}"
    )
}

/// Sources of a Debian. `sites` has what the machine has Debian's packages from.
fn sources(debian: Debian, mirrors: &Mirrors, sites: &str) -> String {
    let machines = |is_security: bool| {
        sites.lines().find_map(|line| {
            let mut fields = line.split('|');
            let (origin, site, release) = (fields.next()?, fields.next()?, fields.next()?);
            (origin == "Debian" && release.ends_with("-security") == is_security).then_some(site)
        })
    };
    let stanza = |uri: &str, suites: &[String]| {
        format!(
            "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: main\nSigned-By: {KEYRING}\n",
            suites.join(" ")
        )
    };
    let (suites, security) = debian.suites();
    let archive = mirrors.archive.as_deref().or_else(|| machines(false)).unwrap_or(ARCHIVE);
    let mut text = stanza(archive, &suites);
    if let Some(security) = security {
        let mirror = mirrors.security.as_deref().or_else(|| machines(true)).unwrap_or(SECURITY);
        text.push('\n');
        text.push_str(&stanza(mirror, &[security]));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn test_sources_are_of_the_machines_mirrors() {
        let sites = "Debian|http://mirror.example/debian-security|bookworm-security\n\
                     Else|http://else.example|stable\n\
                     Debian|http://mirror.example/debian|bookworm\n";
        let text = sources(Debian::Trixie, &Mirrors::default(), sites);
        let expected = format!(
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\nComponents: main\n\
             Signed-By: {KEYRING}\n\n\
             Types: deb\nURIs: http://mirror.example/debian-security\nSuites: trixie-security\nComponents: main\n\
             Signed-By: {KEYRING}\n"
        );
        assert_eq!(text, expected);
        let named = Mirrors { archive: Some("http://a.example/debian".to_owned()), security: None };
        let text = sources(Debian::Trixie, &named, "Ubuntu|http://u.example|noble\n");
        assert!(text.contains("URIs: http://a.example/debian\n") && text.contains(SECURITY), "{text}");
    }

    #[test]
    fn test_sources_of_sid_have_no_security_archive() {
        let text = sources(Debian::Sid, &Mirrors::default(), "");
        assert!(text.contains("Suites: sid\n") && text.matches("Types:").count() == 1, "{text}");
    }

    #[test]
    fn test_few_settings_are_taken_over() {
        let dump = "Acquire::http \"\";\nAcquire::http::Proxy \"http://p:3128\";\n\
                    Acquire::httpsX::y \"1\";\nAcquire::Check-Valid-Until \"false\";\n\
                    Acquire::https::CAInfo \"/c\";\nAPT::Update::Post-Invoke:: \"rm\";\n";
        let expected = "Acquire::http \"\";\nAcquire::http::Proxy \"http://p:3128\";\n\
                        Acquire::Check-Valid-Until \"false\";\nAcquire::https::CAInfo \"/c\";\n";
        assert_eq!(lines_taken_over(dump), expected);
    }

    #[test]
    fn test_settings_read_nothing_of_the_machine() {
        let text = settings(Path::new("/c/apt/trixie"), "Acquire::http::Proxy \"x\";\n");
        for line in [
            "Dir::Etc::parts \"/dev/null\";",
            "Dir::Etc::trustedparts \"/dev/null\";",
            "Dir::State::lists \"/c/apt/trixie/lists\";",
            "APT::Architectures { \"amd64\"; };",
            "Acquire::http::Proxy \"x\";",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}");
        }
    }

    #[test]
    fn test_update_that_fails_is_told_apart() {
        let output = |code: i32, stderr: &str| Output {
            status: std::process::ExitStatus::from_raw(code << 8),
            stdout: Vec::new(),
            stderr: stderr.into(),
        };
        let check = |code, stderr| check_update(&output(code, stderr), Debian::Trixie, Path::new("/l"));
        check(0, "").unwrap();
        check(0, "W: Failed to fetch http://… Some index files failed to download.\n").unwrap();
        let key = "W: GPG error: … NO_PUBKEY 762F67A0B2C39DE4\nE: The repository … is not signed.";
        assert!(matches!(check(100, key), Err(ImageError::NoKeys { .. })));
        assert!(matches!(check(100, "E: The repository … is not signed."), Err(ImageError::Fetch { .. })));
        assert!(matches!(check(100, "E: No space left on device"), Err(ImageError::DiskFull { .. })));
    }

    #[test]
    fn test_machines_apt_is_taken_for_the_machines_release() {
        let cache = Path::new("/c");
        let default = Mirrors::default();
        for debian in Debian::ALL {
            let apt = Apt::of(cache, debian, &default);
            assert_eq!(apt.own.is_none(), Debian::of_machine() == Some(debian));
            let named = Mirrors { archive: Some("http://a.example/debian".to_owned()), security: None };
            let apt = Apt::of(cache, debian, &named);
            assert_eq!(
                apt.source_lists(cache).1,
                Path::new("/c/apt").join(debian.name()).join("sources/lists")
            );
        }
    }
}
