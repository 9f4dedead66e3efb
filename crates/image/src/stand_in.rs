//! A library that stands in for one which a program is linked with but never calls.
//!
//! Debian's QEMU is linked with SPICE, and through it with GStreamer, OpenSSL, Opus and a dozen others: a third of
//! an image, and code that nobody wants beside a guest. No stubdomain offers SPICE, but the program does not start
//! without the library. The stand-in has every function that the program asks for, with its version; each of them
//! says so on standard error and ends the program with status 127.

use std::collections::BTreeMap;

use elf::{ElfBytes, abi, endian::AnyEndian};

use crate::{ImageError, Result};

/// `write(2, text, len); _exit(127)`, with the text's distance from the end of the first instruction at 3, and its
/// length at 8.
const CODE: [u8; 39] = [
    0x48, 0x8d, 0x35, 0, 0, 0, 0, // lea text(%rip), %rsi
    0xba, 0, 0, 0, 0, // mov $len, %edx
    0xbf, 2, 0, 0, 0, // mov $2, %edi
    0xb8, 1, 0, 0, 0, // mov $1 (write), %eax
    0x0f, 0x05, // syscall
    0xbf, 127, 0, 0, 0, // mov $127, %edi
    0xb8, 231, 0, 0, 0, // mov $231 (exit_group), %eax
    0x0f, 0x05, // syscall
    0x0f, 0x0b, 0x90, // ud2; nop
];
/// Segments are pages of their own: read-only tables, code, and the dynamic section, which `ld.so` writes to.
const PAGE: usize = 0x1000;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SYMBOL: usize = 24;
/// `STB_GLOBAL << 4 | STT_FUNC`.
const GLOBAL_FUNCTION: u8 = 0x12;
/// Any section that is not `SHN_UNDEF`; the file has no section headers to count.
const DEFINED: u16 = 1;

/// Makes a library of the name `soname` with all functions that a program takes from the real one.
///
/// # Errors
/// [`ImageError::BadElf`] when the program cannot be read, or takes something other than versioned functions from
/// the library, which a stand-in could not give.
pub fn stand_in(program: &str, bytes: &[u8], soname: &str) -> Result<Vec<u8>> {
    let bad = |reason: String| ImageError::BadElf { path: program.to_owned(), reason };
    let functions = functions(bytes, soname).map_err(bad)?;
    if functions.is_empty() {
        return Err(bad(format!("it uses no versioned function of {soname}")));
    }
    Ok(library(soname, &functions))
}

/// The functions that a program takes from a library: name and version.
fn functions(bytes: &[u8], soname: &str) -> std::result::Result<Vec<(String, String)>, String> {
    let file = ElfBytes::<AnyEndian>::minimal_parse(bytes).map_err(|error| error.to_string())?;
    let symbols = file.dynamic_symbol_table().map_err(|error| error.to_string())?;
    let versions = file.symbol_version_table().map_err(|error| error.to_string())?;
    let (Some((symbols, names)), Some(versions)) = (symbols, versions) else {
        return Err("it has no versioned symbols".to_owned());
    };
    let mut functions = Vec::new();
    for (number, symbol) in symbols.iter().enumerate().filter(|(_, symbol)| symbol.is_undefined()) {
        let requirement = versions.get_requirement(number).map_err(|error| error.to_string())?;
        let Some(requirement) = requirement.filter(|requirement| requirement.file == soname) else {
            continue;
        };
        let name = usize::try_from(symbol.st_name).map_err(|error| error.to_string())?;
        let name = names.get(name).map_err(|error| error.to_string())?;
        if symbol.st_symtype() != abi::STT_FUNC {
            return Err(format!("it uses {name} of {soname}, which is not a function"));
        }
        functions.push((name.to_owned(), requirement.name.to_owned()));
    }
    functions.sort();
    Ok(functions)
}

/// Strings, each once, by offset.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
}

impl Strings {
    fn add(&mut self, text: &str) -> u32 {
        if self.bytes.is_empty() {
            self.bytes.push(0);
        }
        let at = small(self.bytes.len());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        at
    }
}

/// Writes the library.
fn library(soname: &str, functions: &[(String, String)]) -> Vec<u8> {
    let mut strings = Strings::default();
    let soname_at = strings.add(soname);
    // Version 1 is the library itself, as ever.
    let versions: BTreeMap<&str, u16> =
        functions.iter().map(|(_, version)| (version.as_str(), 0)).collect::<BTreeMap<_, _>>();
    let versions: BTreeMap<&str, u16> = versions.into_keys().zip(2_u16..).collect();
    let mut definitions = definition(1, soname, soname_at, versions.is_empty());
    for (version, number) in &versions {
        let last = usize::from(*number) == versions.len() + 1;
        definitions.extend(definition(*number, version, strings.add(version), last));
    }
    let mut symbols = vec![0; SYMBOL];
    let mut numbers = 0_u16.to_le_bytes().to_vec();
    for (name, version) in functions {
        symbols.extend(strings.add(name).to_le_bytes());
        symbols.extend([GLOBAL_FUNCTION, 0]);
        symbols.extend(DEFINED.to_le_bytes());
        // The one function; its address is filled in when the tables' size is known.
        symbols.extend([0; 16]);
        numbers.extend(versions[version.as_str()].to_le_bytes());
    }
    let mut tables = vec![0; HEADER + 5 * PROGRAM_HEADER];
    let mut place = |bytes: &[u8]| {
        tables.resize(tables.len().next_multiple_of(8), 0);
        let at = tables.len();
        tables.extend_from_slice(bytes);
        at
    };
    let places = Places {
        hash: place(&hash_table(functions)),
        symbols: place(&symbols),
        strings: place(&strings.bytes),
        numbers: place(&numbers),
        definitions: place(&definitions),
    };
    let code_at = tables.len().next_multiple_of(PAGE);
    for number in 1..=functions.len() {
        put(&mut tables, places.symbols + number * SYMBOL + 8, &(code_at as u64).to_le_bytes());
    }
    let code = code(soname);
    let dynamic_at = (code_at + code.len()).next_multiple_of(PAGE);
    let dynamic = dynamic(&places, soname_at, strings.bytes.len(), versions.len() + 1);
    let mut file = tables;
    let tables_len = file.len();
    file.resize(code_at, 0);
    file.extend_from_slice(&code);
    file.resize(dynamic_at, 0);
    file.extend_from_slice(&dynamic);
    headers(
        &mut file,
        &[
            (abi::PT_LOAD, abi::PF_R, 0, tables_len),
            (abi::PT_LOAD, abi::PF_R | abi::PF_X, code_at, code.len()),
            (abi::PT_LOAD, abi::PF_R | abi::PF_W, dynamic_at, dynamic.len()),
            (abi::PT_DYNAMIC, abi::PF_R | abi::PF_W, dynamic_at, dynamic.len()),
            // Without it the loader makes the stack executable, which QEMU's system call filter refuses.
            (abi::PT_GNU_STACK, abi::PF_R | abi::PF_W, 0, 0),
        ],
    );
    file
}

/// Where the tables are.
struct Places {
    hash: usize,
    symbols: usize,
    strings: usize,
    numbers: usize,
    definitions: usize,
}

/// A version definition and its one name (`Elf64_Verdef`, `Elf64_Verdaux`).
fn definition(number: u16, name: &str, name_at: u32, last: bool) -> Vec<u8> {
    let base = u16::from(number == 1);
    let mut bytes = Vec::with_capacity(28);
    for half in [1, base, number, 1] {
        bytes.extend(half.to_le_bytes());
    }
    let next: u32 = if last { 0 } else { 28 };
    for word in [elf_hash(name), 20, next, name_at, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// A symbol hash table (`DT_HASH`).
fn hash_table(functions: &[(String, String)]) -> Vec<u8> {
    const BUCKETS: usize = 32;
    let (mut buckets, mut chains) = ([0_u32; BUCKETS], vec![0_u32; functions.len() + 1]);
    for (number, (name, _)) in functions.iter().enumerate() {
        let bucket = &mut buckets[elf_hash(name) as usize % BUCKETS];
        chains[number + 1] = std::mem::replace(bucket, small(number + 1));
    }
    let words = [small(BUCKETS), small(chains.len())].into_iter().chain(buckets).chain(chains);
    words.flat_map(u32::to_le_bytes).collect()
}

/// The ELF specification's hash of a name.
fn elf_hash(name: &str) -> u32 {
    name.bytes().fold(0, |hash: u32, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ (high >> 24)) & !high
    })
}

fn code(soname: &str) -> Vec<u8> {
    let text = format!("This image has no {soname}: the program was asked for something that it left out.\n");
    let mut code = CODE.to_vec();
    put(&mut code, 3, &small(CODE.len() - 7).to_le_bytes());
    put(&mut code, 8, &small(text.len()).to_le_bytes());
    code.extend_from_slice(text.as_bytes());
    code
}

fn dynamic(places: &Places, soname: u32, strings: usize, definitions: usize) -> Vec<u8> {
    let entries = [
        (abi::DT_SONAME, soname as usize),
        (abi::DT_HASH, places.hash),
        (abi::DT_SYMTAB, places.symbols),
        (abi::DT_SYMENT, SYMBOL),
        (abi::DT_STRTAB, places.strings),
        (abi::DT_STRSZ, strings),
        (abi::DT_VERSYM, places.numbers),
        (abi::DT_VERDEF, places.definitions),
        (abi::DT_VERDEFNUM, definitions),
        (abi::DT_NULL, 0),
    ];
    entries
        .into_iter()
        .flat_map(|(tag, value)| [tag.to_le_bytes(), (value as u64).to_le_bytes()].concat())
        .collect()
}

/// Writes the ELF header and program headers: kind, rights, offset (which is the address), size.
fn headers(file: &mut [u8], segments: &[(u32, u32, usize, usize); 5]) {
    put(file, 0, &[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    put(file, 16, &abi::ET_DYN.to_le_bytes());
    put(file, 18, &abi::EM_X86_64.to_le_bytes());
    put(file, 20, &1_u32.to_le_bytes());
    put(file, 0x20, &(HEADER as u64).to_le_bytes());
    for (number, size) in [HEADER, PROGRAM_HEADER, segments.len(), 64].into_iter().enumerate() {
        put(file, 0x34 + 2 * number, &small(size).to_le_bytes()[..2]);
    }
    for (number, (kind, rights, at, size)) in segments.iter().enumerate() {
        let header = HEADER + number * PROGRAM_HEADER;
        put(file, header, &kind.to_le_bytes());
        put(file, header + 4, &rights.to_le_bytes());
        let align = if *kind == abi::PT_LOAD { PAGE } else { 8 };
        for (word, value) in [*at, *at, *at, *size, *size, align].into_iter().enumerate() {
            put(file, header + 8 + 8 * word, &(value as u64).to_le_bytes());
        }
    }
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// All sizes here come from one program's symbol names, which are far below 4 GiB.
fn small(number: usize) -> u32 {
    u32::try_from(number).expect("a program's symbol table is far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closure::inspect_bytes;

    fn sample() -> Vec<u8> {
        let function = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        library(
            "libx.so.1",
            &[function("x_close", "X_1.0"), function("x_more", "X_2.0"), function("x_open", "X_1.0")],
        )
    }

    #[test]
    fn test_library_is_a_library_without_needs() {
        let dynamic = inspect_bytes("libx", &sample()).unwrap();
        assert_eq!((dynamic.needed.len(), dynamic.interpreter), (0, None));
    }

    #[test]
    fn test_elf_hash_matches_known_values() {
        // From glibc's own version tables.
        assert_eq!(elf_hash("GLIBC_2.2.5"), 0x0969_1a75);
        assert_eq!(elf_hash("GLIBC_2.34"), 0x0696_91b4);
    }

    #[test]
    fn test_stand_in_for_what_is_not_taken_is_refused() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert!(matches!(stand_in("self", &program, "libnone.so.1"), Err(ImageError::BadElf { .. })));
        assert!(stand_in("text", b"text", "libc.so.6").is_err());
    }

    /// The test program itself takes its unwinder from libgcc, and calls it only when something panics.
    #[test]
    fn test_program_starts_with_a_stand_in() {
        let path = std::env::current_exe().unwrap();
        let program = std::fs::read(&path).unwrap();
        let library = stand_in("self", &program, "libgcc_s.so.1").unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("libgcc_s.so.1"), library).unwrap();
        let output = std::process::Command::new(path)
            .args(["--list", "--exact", "stand_in::tests::test_program_starts_with_a_stand_in"])
            .env("LD_LIBRARY_PATH", dir.path())
            .env("LD_BIND_NOW", "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{}: {stderr}", output.status);
    }

    #[test]
    fn test_stand_in_for_a_variable_is_refused() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let error = stand_in("self", &program, "libc.so.6").unwrap_err().to_string();
        assert!(error.contains("is not a function"), "{error}");
    }
}
