//! What no compiler checks of the source: layers, headers, links.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate, and those that it may name. A new edge comes with a line in
/// docs/architecture.md. `super::` does not leave a module, since all of these are at the top.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["config", "server"]),
    (
        "server",
        &[
            "auth", "config", "clock", "engine", "grpc", "lease", "proto", "snapshot", "storage",
        ],
    ),
    (
        "grpc",
        &[
            "auth", "config", "engine", "mvcc", "proto", "snapshot", "storage", "watch",
        ],
    ),
    (
        "engine",
        &[
            "auth", "clock", "lease", "mvcc", "snapshot", "storage", "watch",
        ],
    ),
    ("watch", &["storage"]),
    ("snapshot", &["auth", "lease", "mvcc", "proto", "storage"]),
    ("mvcc", &["storage"]),
    ("lease", &["clock", "storage"]),
    ("auth", &["proto", "storage"]),
    ("storage", &["clock"]),
    ("config", &[]),
    ("clock", &[]),
    ("proto", &[]),
    ("lib", &[]),
    // For tests only.
    (
        "fuzz",
        &["auth", "grpc", "mvcc", "proto", "snapshot", "storage"],
    ),
];

/// The one folder that names the crate redb.
const REDB: &str = "src/storage/redb/";

#[test]
fn each_layer_names_only_what_is_below_it() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let layer = LAYERS.iter().find(|(name, _)| *name == module);
        let Some((_, below)) = layer else {
            wrong.push(format!("{path}: module {module} has no layer"));
            continue;
        };
        // The program is another crate than the library.
        let root = if module == "main" {
            "metastore"
        } else {
            "crate"
        };
        for named in named_behind(&code(&text), root) {
            if named != module && !below.contains(&&*named) {
                wrong.push(format!("{path}: {module} may not name {named}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_one_folder_names_redb() {
    let names_redb = |code: &str| {
        code.match_indices("redb::").any(|(at, _)| {
            let before = code[..at].trim_end();
            let crate_root =
                before.ends_with("::") && !before[..before.len() - 2].ends_with(is_word);
            (crate_root || !before.ends_with("::")) && !code[..at].ends_with(is_word)
        })
    };
    assert!(names_redb("use redb::Table;") && names_redb("::redb::Table"));
    assert!(!names_redb("use super::redb::Reader;") && !names_redb("my_redb::Table"));
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|(path, text)| !path.starts_with(REDB) && names_redb(&code(text)))
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "these name redb: {wrong:?}");
}

#[test]
fn each_file_says_what_it_is() {
    let without = sources().into_iter().filter(|(_, text)| {
        let header = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("//! "));
        header.is_none_or(|header| header.trim().is_empty())
    });
    let without: Vec<String> = without.map(|(path, _)| path).collect();
    assert!(without.is_empty(), "no header in {without:?}");
}

#[test]
fn relative_links_in_documents_lead_somewhere() {
    let mut documents = files_below(&root().join("docs"), "md");
    documents.extend(
        files_below(&root(), "md")
            .into_iter()
            .filter(|path| path.parent() == Some(&root())),
    );
    let mut dead = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).expect("a document can be read");
        let folder = document.parent().expect("a file lies in a folder");
        for link in links(&text) {
            if !folder.join(link).exists() {
                dead.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn what_a_text_names_is_found() {
    let text = "use crate::{clock::Clock, mvcc::{self, range}};\n// crate::server\ncrate :: x; \
                fn f() -> crate::storage::Error;\n#[cfg(test)]\nmod tests { use crate::grpc; }";
    assert_eq!(
        named_behind(&code(text), "crate"),
        ["clock", "mvcc", "storage"]
    );
    let text = "[a](b.md#c) [d](https://e) ![f](g.png) [h](#i)\n```text\n[j](k)\n```\n`[l](m)`";
    assert_eq!(links(text).collect::<Vec<_>>(), ["b.md", "g.png"]);
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Path and text of each file of the library and the program.
fn sources() -> Vec<(String, String)> {
    let files = files_below(&root().join("src"), "rs");
    assert!(files.len() > 30, "the source is where it was");
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a source file can be read");
            let path = path.strip_prefix(root()).expect("it is below the root");
            (path.display().to_string(), text)
        })
        .collect()
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return files;
    };
    for entry in entries {
        let path = entry.expect("a folder of ours can be read").path();
        if path.is_dir() && !is_made(&path) {
            files.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn is_made(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name == "target" || name.starts_with('.')
}

/// `src/storage/log.rs` is of module `storage`, `src/clock.rs` is `clock`.
fn module_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").expect("it is a source file");
    below
        .split(['/', '.'])
        .next()
        .expect("a path has a first part")
}

/// The text without comments and without tests, which may name what they like.
fn code(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        if line == "#[cfg(test)]" {
            break;
        }
        if !line.trim_start().starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// The modules that paths of `code` name right behind `root::`.
fn named_behind(code: &str, root: &str) -> Vec<String> {
    let mut named = Vec::new();
    let start = format!("{root}::");
    for (at, _) in code.match_indices(&start) {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = &code[at + start.len()..];
        match rest.strip_prefix('{') {
            None => named.extend(first_word(rest)),
            Some(list) => {
                let (mut depth, mut begins) = (0, true);
                for (place, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => begins = true,
                        c if begins && is_word(c) => {
                            named.extend(first_word(&list[place..]));
                            begins = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    named
}

fn first_word(text: &str) -> Option<String> {
    let word = text.split(|c| !is_word(c)).next()?;
    (!word.is_empty()).then(|| word.to_owned())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where the links of a Markdown text lead that stay within the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    let prose = text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    });
    let outside_quotes = prose.flat_map(|line| line.split('`').step_by(2));
    let targets = outside_quotes.flat_map(|part| {
        let behind = part.split("](").skip(1);
        behind.filter_map(|rest| rest.split([')', ' ']).next())
    });
    targets
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .filter_map(|target| target.split('#').next())
        .filter(|path| !path.is_empty())
}
