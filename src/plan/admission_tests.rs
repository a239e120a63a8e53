//! Each rule on binaries made up for it: what passes, and what each refusal says.

use super::*;
use crate::golang::{BuildInfo, Module, NoBuildInfo};

fn module(path: &str, version: &str, sum: &str) -> Module {
    Module { path: path.into(), version: version.into(), sum: sum.into(), replace: None }
}

fn info() -> BuildInfo {
    BuildInfo {
        go: "go1.22.3".into(),
        path: "example.com/app".into(),
        main: Some(module("example.com/app", "(devel)", "")),
        deps: vec![
            module("golang.org/x/net", "v0.17.0", "h1:net="),
            module("example.com/lib", "v1.2.3", "h1:lib="),
        ],
        settings: [("vcs.revision", "0123"), ("vcs.modified", "false")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .to_vec(),
    }
}

fn with(info: BuildInfo) -> BinaryFacts {
    let sum = "ab".repeat(32).parse().unwrap();
    BinaryFacts { go: Ok(info), sha256: Some(sum), ..binary() }
}

fn with_deps(deps: Vec<Module>) -> BinaryFacts {
    with(BuildInfo { deps, ..info() })
}

fn sums(host: &mut HostFacts, lines: &[(&str, &str, &str)]) {
    let entry = |(path, version, sum): &(&str, &str, &str)| {
        (((*path).to_owned(), (*version).to_owned()), (*sum).to_owned())
    };
    host.go_sums = lines.iter().map(entry).collect();
}

fn admitted(rules: &str, binary: &BinaryFacts) -> Vec<String> {
    resolve(&request(&format!("[binary]\n{rules}")), &host(), binary).unwrap().admitted
}

#[track_caller]
fn refused(rules: &str, binary: &BinaryFacts, why: &str) {
    let error = resolve(&request(&format!("[binary]\n{rules}")), &host(), binary).unwrap_err();
    assert!(error.refused, "{error}");
    let text = error.to_string();
    let start = "open binary: /srv/acme/app: ";
    assert!(text.starts_with(&format!("{start}{why}")), "{text}\nis not\n{start}{why}");
    assert!(text.ends_with(')') && text.contains(" ("), "a remedy: {text}");
}

#[test]
fn nothing_is_asked_where_nothing_is_written() {
    assert!(!request("").policy.asks_of_binary());
    assert_eq!(plan("", &host()).unwrap().admitted, Vec::<String>::new());
    for rule in [
        "go = \">=1.21\"",
        "static = true",
        "vcs_clean = true",
        "replace = false",
        "incompatible = false",
        "pseudo_version = false",
        "sums = \"go.sum\"",
        "modules.deny = []",
        "modules.allow = []",
    ] {
        assert!(request(&format!("[binary]\n{rule}")).policy.asks_of_binary(), "{rule}");
    }
    for rule in ["static = false", "replace = true", "vcs_clean = false"] {
        assert!(!request(&format!("[binary]\n{rule}")).policy.asks_of_binary(), "{rule}");
    }
}

#[test]
fn the_sum() {
    let (good, bad) = ("ab".repeat(32), "cd".repeat(32));
    let lines = admitted(&format!("sha256 = \"{good}\""), &with(info()));
    assert_eq!(lines, [format!("binary.sha256: {good}")]);
    refused(
        &format!("sha256 = \"{bad}\""),
        &with(info()),
        &format!("binary.sha256 {bad}: {good} ("),
    );
    // Without a copy there is nothing that a sum would be of.
    let none = BinaryFacts { sha256: None, ..with(info()) };
    refused(&format!("sha256 = \"{good}\""), &none, &format!("binary.sha256 {good}: unknown ("));
}

#[test]
fn linking_release_and_revision() {
    assert_eq!(admitted("static = true", &with(info())), ["binary.static: no interpreter"]);
    let linkage = crate::golang::Linkage {
        interpreter: Some("/lib64/ld.so".into()),
        ..crate::golang::Linkage::default()
    };
    let dynamic = BinaryFacts { linkage, ..with(info()) };
    refused("static = true", &dynamic, "binary.static: dynamically linked, by /lib64/ld.so (");
    assert_eq!(admitted("go = \">=1.21\"", &with(info())), ["binary.go \">=1.21\": go1.22.3"]);
    refused("go = \">=1.23\"", &with(info()), "binary.go \">=1.23\": built with go1.22.3 (");
    let odd = with(BuildInfo { go: "devel \u{1b}".into(), ..info() });
    refused("go = \">=1\"", &odd, "binary.go \">=1\": built with devel \\u{1b} (");
    let not_go = BinaryFacts { go: Err(NoBuildInfo::NotGo), ..with(info()) };
    refused("go = \">=1\"", &not_go, "binary.go \">=1\": not a Go program");

    assert_eq!(admitted("vcs_clean = true", &with(info())), ["binary.vcs_clean: 0123"]);
    let mut dirty = info();
    dirty.settings[1].1 = "true".into();
    refused("vcs_clean = true", &with(dirty), "binary.vcs_clean: built with changes");
    let unknown = BuildInfo { settings: vec![], ..info() };
    refused("vcs_clean = true", &with(unknown), "binary.vcs_clean: it does not say");
    refused("vcs_clean = true", &not_go, "binary.vcs_clean: it does not say");
}

#[test]
fn modules_by_name_and_version() {
    let deny = |rule: &str| format!("modules.deny = [\"{rule}\"]");
    let net = "golang.org/x/net < 0.17.0";
    assert_eq!(admitted(&deny(net), &with(info())), ["binary.modules.deny: 2 modules"]);
    let old = with_deps(vec![module("golang.org/x/net", "v0.16.0", "h1:x=")]);
    let why = format!("binary.modules.deny \"{net}\": golang.org/x/net v0.16.0 (");
    refused(&deny(net), &old, &why);
    refused(&deny("example.com/..."), &with(info()), "binary.modules.deny \"example.com/...\": ");

    let allow = "modules.allow = [\"golang.org/x/... >= 0.10\", \"example.com/lib\"]";
    assert_eq!(admitted(allow, &with(info())), ["binary.modules.allow: 2 modules"]);
    let other = with_deps(vec![module("example.com/other", "v1.0.0", "h1:x=")]);
    refused(allow, &other, "binary.modules.allow: example.com/other v1.0.0 (");
    refused("modules.allow = []", &with(info()), "binary.modules.allow: golang.org/x/net v0.17.0");
}

#[test]
fn what_was_replaced_is_judged_by_what_took_its_place() {
    let replaced = |path: &str, version: &str, sum: &str| {
        let mut net = module("golang.org/x/net", "v0.10.0", "");
        net.replace = Some(Box::new(module(path, version, sum)));
        with_deps(vec![net])
    };
    let deny = "modules.deny = [\"golang.org/x/net < 0.17.0\"]";
    admitted(deny, &replaced("golang.org/x/net", "v0.20.0", "h1:x="));
    let shown = "golang.org/x/net v0.10.0 => ../net";
    let why = format!("binary.modules.deny \"golang.org/x/net < 0.17.0\": {shown} (");
    // A directory may hold any version.
    refused(deny, &replaced("../net", "", ""), &why);
    refused("replace = false", &replaced("../net", "", ""), &format!("binary.replace: {shown} ("));
    let by_fork = replaced("example.com/net", "v0.20.0", "h1:x=");
    refused("modules.deny = [\"example.com/net\"]", &by_fork, "binary.modules.deny");
    refused("modules.allow = [\"golang.org/...\"]", &by_fork, "binary.modules.allow");
    admitted("modules.allow = [\"example.com/net\"]", &by_fork);
    refused("sums = \"go.sum\"", &replaced("../net", "", ""), "binary.sums go.sum: ");
}

#[test]
fn kinds_of_versions() {
    let of = |version: &str| with_deps(vec![module("example.com/lib", version, "h1:x=")]);
    let both = "incompatible = false\npseudo_version = false";
    admitted(both, &of("v1.2.3"));
    let why = "binary.incompatible: example.com/lib v2.0.0+incompatible (";
    refused(both, &of("v2.0.0+incompatible"), why);
    refused(both, &of("v0.0.0-20200501145240-bc7a7d42d5c3"), "binary.pseudo_version: ");
    admitted("incompatible = true", &of("v2.0.0+incompatible"));
}

#[test]
fn sums_of_modules() {
    let mut host = host();
    let try_it = |host: &HostFacts| {
        let request = request("[binary]\nsums = \"/srv/go.sum\"");
        resolve(&request, host, &with(info())).map(|plan| plan.admitted).map_err(|e| e.to_string())
    };
    let net = ("golang.org/x/net", "v0.17.0", "h1:net=");
    let lib = ("example.com/lib", "v1.2.3", "h1:lib=");
    sums(&mut host, &[net, lib]);
    assert_eq!(try_it(&host).unwrap(), ["binary.sums: 2 modules"]);
    sums(&mut host, &[net]);
    let error = try_it(&host).unwrap_err();
    assert!(error.contains("example.com/lib v1.2.3: not in /srv/go.sum ("), "{error}");
    sums(&mut host, &[net, ("example.com/lib", "v1.2.3", "h1:other=")]);
    let error = try_it(&host).unwrap_err();
    assert!(error.contains("h1:lib= in the binary, h1:other= in go.sum ("), "{error}");
}

/// A rule that cannot be answered is not kept.
#[test]
fn without_modules_no_rule_about_them_holds() {
    let bare = with(BuildInfo { main: None, deps: vec![], ..info() });
    let not_go = BinaryFacts { go: Err(NoBuildInfo::NotGo), ..with(info()) };
    for rule in [
        "modules.deny = [\"a.b/c\"]",
        "modules.allow = [\"a.b/c\"]",
        "replace = false",
        "incompatible = false",
        "pseudo_version = false",
        "sums = \"go.sum\"",
    ] {
        let name = rule.split(" = ").next().unwrap();
        refused(rule, &bare, &format!("binary.{name}: built without modules"));
        refused(rule, &not_go, &format!("binary.{name}: not a Go program"));
    }
}

#[test]
fn a_copy_is_part_of_the_tenants_memory() {
    let copied = BinaryFacts { size: 60 << 20, ..with(info()) };
    let ops = |toml: &str, binary: &BinaryFacts| {
        let plan = resolve(&request(toml), &host(), binary).unwrap();
        plan.rootfs.last().cloned().unwrap()
    };
    let target = PathBuf::from("/app/app");
    assert_eq!(
        ops("[binary]\nstatic = true", &copied),
        MountOp::Copy(target.clone(), crate::value::ByteSize(60 << 20))
    );
    let plain = BinaryFacts { sha256: None, ..with(info()) };
    assert_eq!(ops("", &plain), MountOp::Binary(target));
    let request = request("[binary]\nstatic = true\n[limits]\nmemory = \"63M\"");
    let error = resolve(&request, &host(), &copied).unwrap_err();
    assert!(!error.refused && error.to_string().contains("limits.memory"), "{error}");
}
