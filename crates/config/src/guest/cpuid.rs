//! `cpuid`: in xl's own form (`"host,tm=0,sse4.2=x"`) and in the older one (`[ "1:ecx=x…,edx=…" ]`).

use xen_types::Release;

use super::cpuid_names::{FEATURES, FIELDS, Field, NEWER, WORDS};
use crate::diagnostic::Diagnostic;
use crate::document::{Atom, Value};
use crate::model::{CpuidLeaf, CpuidPolicy};
use crate::number;
use crate::reader::Reader;
use crate::source::Span;

const BITS: usize = 32;

pub(super) fn policy(reader: &mut Reader<'_>) -> CpuidPolicy {
    let mut policy = CpuidPolicy::default();
    match reader.entry("cpuid").map(|entry| &entry.value) {
        None => {}
        Some(Value::Atom(atom)) => flags(atom, &mut policy, reader),
        Some(Value::List(_)) => {
            for atom in reader.strings("cpuid").unwrap_or_default() {
                if let Err(problem) = leaf(atom, &mut policy) {
                    reader.push(problem);
                }
            }
        }
    }
    policy
}

fn bad(message: impl Into<String>, span: Span) -> Diagnostic {
    Diagnostic::error("config::bad-cpuid", message).at(span)
}

fn flags(atom: &Atom, policy: &mut CpuidPolicy, reader: &mut Reader<'_>) {
    let mut words = words(atom);
    match words.next() {
        None | Some(("host", _)) => {}
        Some((_, span)) => {
            let problem = bad("The first word must be `host`", span);
            reader.push(problem.help("write `cpuid = \"host,NAME=VALUE,…\"`"));
            return;
        }
    }
    for (word, span) in words {
        if let Err(problem) = flag(word, span, policy) {
            reader.push(problem);
        }
    }
}

/// The words between commas, and where each is.
fn words(atom: &Atom) -> impl Iterator<Item = (&str, Span)> {
    let mut start = 0;
    let words = atom.text.as_str().split(',').map(move |word| {
        let at = start..start + word.len();
        start = at.end + 1;
        (word, atom.text.span(at))
    });
    words.filter(|(word, _)| !word.is_empty())
}

fn flag(word: &str, span: Span, policy: &mut CpuidPolicy) -> Result<(), Diagnostic> {
    let (name, value) = word.split_once('=').ok_or_else(|| bad(format!("`{word}` has no `=`"), span))?;
    let field = find(name, span)?;
    let bits = bits(value, field.length).ok_or_else(|| {
        bad(format!("`{value}` is not a CPUID value"), span)
            .help("write a number, or `x` (default), `k` (host's, kept over migration), `s` (host's, the same there)")
    })?;
    let register = register(policy, field.leaf, field.subleaf, field.register);
    match name {
        "family" | "model" => split(register, &field, value, &bits),
        _ => put(register, field.bit, &bits),
    }
    Ok(())
}

fn find(name: &str, span: Span) -> Result<Field, Diagnostic> {
    if let Some(field) = FIELDS.iter().find(|field| field.name == name) {
        return Ok(*field);
    }
    let Some((name, word, bit)) = feature(name) else { return Err(unknown(name, span)) };
    let Some(&Some((leaf, subleaf, register))) = WORDS.get(usize::from(word)) else {
        return Err(bad(
            format!("`{name}` is a bit of a model-specific register, which cannot be set yet"),
            span,
        ));
    };
    Ok(Field { name, leaf, subleaf, register, bit: usize::from(bit), length: 1 })
}

/// A name of the feature set, with its word and bit.
fn feature(name: &str) -> Option<(&'static str, u8, u8)> {
    let old = FEATURES.binary_search_by(|feature| feature.0.cmp(name)).ok().and_then(|at| FEATURES.get(at));
    old.copied().or_else(|| newer_feature(name).map(|(name, word, bit, _)| (name, word, bit)))
}

fn newer_feature(name: &str) -> Option<(&'static str, u8, u8, u16)> {
    NEWER.binary_search_by(|feature| feature.0.cmp(name)).ok().and_then(|at| NEWER.get(at)).copied()
}

fn unknown(name: &str, span: Span) -> Diagnostic {
    let known =
        FIELDS.iter().map(|f| f.name).chain(FEATURES.iter().map(|f| f.0)).chain(NEWER.iter().map(|f| f.0));
    let near = known.map(|n| (strsim::damerau_levenshtein(name, n), n)).filter(|(d, _)| *d <= 2).min();
    let problem = bad(format!("`{name}` is not a CPUID feature that Xen up to 4.22 knows"), span);
    match near {
        Some((_, near)) => problem.help(format!("did you mean `{near}`?")),
        None => problem,
    }
}

/// The names in a value of `cpuid` that came after Xen 4.17: each with its release and where it is.
pub(crate) fn newer(value: &Value) -> impl Iterator<Item = (&'static str, Release, Span)> {
    let atom = match value {
        Value::Atom(atom) => Some(atom),
        Value::List(_) => None,
    };
    atom.into_iter().flat_map(words).filter_map(|(word, span)| {
        let (name, _, _, minor) = newer_feature(word.split('=').next()?)?;
        Some((name, Release::new(4, minor), span))
    })
}

/// The value as characters, the highest bit first.
fn bits(value: &str, length: usize) -> Option<Vec<u8>> {
    if let Ok(number) = number::parse(value) {
        let number = u64::try_from(number).ok()?;
        return Some((0..length).rev().map(|bit| if number >> bit & 1 == 1 { b'1' } else { b'0' }).collect());
    }
    match value.as_bytes() {
        [c @ (b'x' | b'k' | b's')] => Some(vec![*c; length]),
        _ => None,
    }
}

fn register(policy: &mut CpuidPolicy, leaf: u32, subleaf: Option<u32>, register: usize) -> &mut String {
    let found = policy.leaves.iter().position(|l| l.leaf == leaf && l.subleaf == subleaf);
    let at = found.unwrap_or_else(|| {
        policy.leaves.push(CpuidLeaf { leaf, subleaf, registers: [const { None }; 4] });
        policy.leaves.len() - 1
    });
    let registers = &mut policy.leaves.get_mut(at).expect("the leaf was found or just added").registers;
    let slot = registers.get_mut(register).expect("there are four registers and no table names a fifth");
    slot.get_or_insert_with(|| "x".repeat(BITS))
}

/// Writes characters so that the last one is bit `bit`.
fn put(register: &mut String, bit: usize, bits: &[u8]) {
    let mut bytes = std::mem::take(register).into_bytes();
    let start = BITS.saturating_sub(bit + bits.len());
    for (slot, value) in bytes.iter_mut().skip(start).zip(bits) {
        *slot = *value;
    }
    *register = String::from_utf8(bytes).expect("only ASCII characters are put into a policy");
}

/// Family and model each lie in two fields of leaf 1's EAX: four bits, and an extension.
fn split(register: &mut String, field: &Field, value: &str, bits: &[u8]) {
    let low = bits.get(4..).unwrap_or_default();
    if field.name == "model" {
        put(register, 16, bits.get(..4).unwrap_or_default());
        put(register, field.bit, low);
        return;
    }
    let number = number::parse(value).ok().and_then(|n| u64::try_from(n).ok());
    match number {
        // Families from 16 on are 15 and the rest in the extension.
        Some(family @ 16..) => {
            put(register, field.bit, b"1111");
            let extension = self::bits(&(family - 15).to_string(), 8).unwrap_or_default();
            put(register, 20, &extension);
        }
        _ => {
            put(register, field.bit, low);
            put(register, 20, b"00000000");
        }
    }
}

/// One line of the older form: `leaf[,subleaf]:reg=POLICY[,reg=POLICY]…`.
fn leaf(atom: &Atom, policy: &mut CpuidPolicy) -> Result<(), Diagnostic> {
    let text = atom.text.as_str();
    let (head, registers) =
        text.split_once(':').ok_or_else(|| bad("The line has no colon after the leaf", atom.span))?;
    let head_span = atom.text.span(0..head.len());
    let mut numbers = head.splitn(2, ',').map(|n| number::parse(n).ok().and_then(|n| u32::try_from(n).ok()));
    let leaf = numbers.next().flatten().ok_or_else(|| bad("The leaf is not a number", head_span))?;
    let subleaf = match numbers.next() {
        None => None,
        Some(number) => Some(number.ok_or_else(|| bad("The subleaf is not a number", head_span))?),
    };
    let mut at = head.len() + 1;
    for part in registers.split(',') {
        let span = atom.text.span(at..at + part.len());
        at += part.len() + 1;
        let (name, value) = part.trim_start_matches([' ', '\n']).split_once('=').unwrap_or((part, ""));
        let index = match name {
            "eax" => 0,
            "ebx" => 1,
            "ecx" => 2,
            "edx" => 3,
            _ => return Err(bad("A register is `eax`, `ebx`, `ecx` or `edx`, then `=`", span)),
        };
        if value.len() != BITS || !value.bytes().all(|b| matches!(b, b'0' | b'1' | b'x' | b'k' | b's')) {
            return Err(bad("A register's policy is 32 characters of `0`, `1`, `x`, `k` and `s`", span));
        }
        value.clone_into(register(policy, leaf, subleaf, index));
    }
    Ok(())
}
