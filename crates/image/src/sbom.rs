//! The bill of materials beside an image, in the form of CycloneDX 1.5 (<https://cyclonedx.org/docs/1.5/json/>).
//!
//! It says what the manifest says, for programs that look for known weaknesses. It has neither a time nor a serial
//! number, both of which the form leaves open, so the same image gives the same bytes.

use serde_json::{Value, json};

use crate::manifest::{Content, Manifest, Source};

/// The bytes of the file.
pub(crate) fn cyclone_dx(manifest: &Manifest) -> Vec<u8> {
    let mut components: Vec<Value> =
        manifest.packages.iter().map(|source| package(source, &manifest.files)).collect();
    // The kernel lies beside the initramfs, and no file of the manifest is from it unless it has modules.
    if !manifest.packages.iter().any(|source| source.name == manifest.kernel.package) {
        components.push(json!({
            "type": "operating-system",
            "bom-ref": manifest.kernel.package,
            "name": manifest.kernel.package,
            "version": manifest.kernel.version,
            "purl": purl(&manifest.kernel.package, &manifest.kernel.version),
        }));
    }
    let image: Vec<Value> = manifest
        .outputs
        .iter()
        .map(|output| json!({"type": "file", "name": output.name, "hashes": hashes(&output.sha256)}))
        .collect();
    let bom = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "firmware",
                "bom-ref": "image",
                "name": "outrigger-stubdomain",
                "version": manifest.agent.version,
                "components": image,
            },
        },
        "components": components,
        "dependencies": [{
            "ref": "image",
            "dependsOn": components.iter().filter_map(|one| one.get("bom-ref")).collect::<Vec<_>>(),
        }],
    });
    let mut text = serde_json::to_vec_pretty(&bom).expect("strings and numbers always make JSON");
    text.push(b'\n');
    text
}

fn package(source: &Source, files: &[Content]) -> Value {
    let files: Vec<Value> = files
        .iter()
        .filter(|file| file.package == source.name && file.link.is_none())
        .map(|file| json!({"type": "file", "name": file.path, "hashes": hashes(&file.sha256)}))
        .collect();
    let mut component = json!({
        "type": "library",
        "bom-ref": source.name,
        "name": source.name,
        "version": source.version,
        "licenses": [{"license": {"name": source.licence}}],
        "components": files,
    });
    // What has no hash is our own, from no package.
    if !source.sha256.is_empty() {
        component["purl"] = purl(&source.name, &source.version).into();
        component["hashes"] = hashes(&source.sha256);
    }
    component
}

fn hashes(sha256: &str) -> Value {
    json!([{"alg": "SHA-256", "content": sha256}])
}

/// A Debian package's URL: what is not a letter, a digit or one of `-._~:` is written as `%XX`.
fn purl(name: &str, version: &str) -> String {
    let escape = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect()
    };
    format!("pkg:deb/debian/{}@{}", escape(name), escape(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_purl_escapes() {
        assert_eq!(purl("libstdc++6", "1:7.2+dfsg-7~1"), "pkg:deb/debian/libstdc%2B%2B6@1:7.2%2Bdfsg-7~1");
    }
}
