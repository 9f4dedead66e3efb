//! Configurations as libvirt, Ganeti and xen-tools write them: which of them become guests, and why the others do not.

mod generators;

use config::Severity;
use generators::{GANETI, LIBVIRT, Variant, XEN_TOOLS, ganeti, libvirt, xen_tools};

/// Checks each variant, and counts those of which a guest is made.
fn count(variants: &[Variant], write: fn(&str) -> String) -> (usize, usize) {
    let mut accepted = 0;
    for (lines, refusal) in variants {
        let text = write(lines);
        let loaded = config::load_str("generated.cfg", &text);
        let errors: Vec<&str> =
            loaded.diagnostics.iter().filter(|d| d.severity == Severity::Error).map(|d| d.id).collect();
        match refusal {
            None => assert!(errors.is_empty(), "{text}\n{}", loaded.render(false)),
            Some(id) => {
                assert!(errors.iter().all(|error| error == id) && !errors.is_empty(), "{text}\n{errors:?}");
            }
        }
        if let Some(guest) = &loaded.config {
            accepted += 1;
            let again = config::load_str("written.cfg", &config::write(guest));
            assert_eq!(again.config.as_ref(), Some(guest), "{text}");
        }
    }
    (accepted, variants.len())
}

/// The numbers are those of `docs/xl-cfg-differences.md`.
#[test]
fn configurations_of_generators_become_guests() {
    assert_eq!(count(LIBVIRT, libvirt), (66, 85), "libvirt");
    assert_eq!(count(GANETI, ganeti), (16, 17), "Ganeti");
    assert_eq!(count(XEN_TOOLS, xen_tools), (5, 7), "xen-tools");
}

#[test]
fn usual_file_of_a_generator_needs_few_words() {
    let said = |text: &str| {
        let loaded = config::load_str("generated.cfg", text);
        loaded.diagnostics.iter().map(|d| d.message.clone()).collect::<Vec<_>>()
    };
    let no_effect = |key: &str| format!("`{key}` has no effect");
    let vnc = ["device_model", "vnc", "vncunused", "vnclisten"].map(no_effect);
    assert_eq!(said(&libvirt("")), vnc);
    let kernel = "`kernel` does not choose the firmware".to_owned();
    assert_eq!(said(&ganeti("")), [kernel, no_effect("device_model")]);
}
