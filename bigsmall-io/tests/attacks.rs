//! What servers and makers of folders try on the command: lists of files, answers without an end,
//! text for the terminal; and signals while the command waits.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed
#![cfg(unix)]

mod common;
#[path = "common/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Random, names, tensor, write};
use safetensors::Dtype;
use server::{Reply, Request, Server, serve};

/// Longer than any test takes, and shorter than the time limits of requests.
const HANG: Duration = Duration::from_secs(30);

fn command(dir: &Path, args: &[&str], endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigsmall"));
    for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HOME", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    for (name, value) in [
        ("HF_ENDPOINT", endpoint),
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("NO_PROXY", "*"),
    ] {
        command.env(name, value);
    }
    command.env("HOME", dir).current_dir(dir).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    command
}

fn bigsmall(dir: &Path, args: &[&str], endpoint: &str) -> Output {
    let output = ended(command(dir, args, endpoint).spawn().unwrap());
    let all = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(all).expect("UTF-8");
    let special = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2066}".contains(c));
    assert!(!text.contains(special), "{args:?}: {text:?}");
    assert!(text.len() < 100_000, "{} bytes of output", text.len());
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn shard() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Random::new(3).weights(600_000);
    write(&dir.path().join("m"), &[tensor("w", Dtype::BF16, &[600_000], bytes)]);
    common::compress(&dir.path().join("m"), &dir.path().join("m.bs")).unwrap();
    std::fs::read(dir.path().join("m.bs")).unwrap()
}

fn tree(dir: &Path, at: &str, found: &mut Vec<String>) {
    for name in names(dir) {
        let at = format!("{at}{name}");
        if dir.join(&name).is_dir() {
            tree(&dir.join(&name), &format!("{at}/"), found);
        } else {
            found.push(at);
        }
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    tree(dir, "", &mut found);
    found
}

/// The Hub's API and the files of one repository.
fn hub(names: &[&str], file: Vec<u8>) -> Server {
    let siblings: Vec<_> = names.iter().map(|n| serde_json::json!({ "rfilename": n })).collect();
    let list = serde_json::json!({ "sha": "abc", "siblings": siblings }).to_string();
    Server::new(move |request, _| match request.path.starts_with("/api/") {
        true => serve(&Request::default(), list.as_bytes(), "l"),
        false if request.path.ends_with(".bs") => serve(request, &file, "f"),
        false => serve(request, b"fsmonitor = evil", "o"),
    })
}

/// A page of a list of S3.
fn page(keys: &[String], next: Option<&str>) -> Reply {
    let mut xml = String::from("<ListBucketResult><Name>models</Name><Prefix>m/</Prefix>");
    xml += &format!("<IsTruncated>{}</IsTruncated>", next.is_some());
    if let Some(next) = next {
        xml += &format!("<NextContinuationToken>{next}</NextContinuationToken>");
    }
    for key in keys {
        xml += &format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>\"f\"</ETag><Size>1</Size></Contents>"
        );
    }
    xml += "</ListBucketResult>";
    Reply { status: 200, body: xml.into_bytes(), ..Reply::default() }
}

/// S3 with one bucket whose list is what `list` says, page by page.
fn s3(list: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static, file: Vec<u8>) -> Server {
    Server::new(move |request, n| {
        if request.path.contains("list-type") {
            return list(request, n);
        }
        let served = match request.path.ends_with(".bs") {
            true => serve(request, &file, "f"),
            false => serve(request, b"fsmonitor = evil", "o"),
        };
        served.with("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
    })
}

const HOSTILE: [&str; 10] = [
    ".git/config",
    ".GIT/hooks/pre-commit",
    "sub/.git/config",
    "sub/.Git",
    "git~1/config",
    ".envrc",
    ".ssh/authorized_keys",
    "sub/.bashrc",
    "config.json",
    "model.bs",
];

#[test]
// N-01, N-02
fn what_git_or_a_shell_would_run_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let file = shard();
    let keys: Vec<String> = HOSTILE.iter().map(|name| format!("m/{name}")).collect();
    let hub = hub(&HOSTILE, file.clone());
    let s3 = s3(move |_, _| page(&keys, None), file.clone());
    // The same on this machine, made by somebody else.
    for name in HOSTILE {
        let path = d.join("local").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, if name == "model.bs" { &file[..] } else { b"evil" }).unwrap();
    }
    for (url, server) in [("hf://o/n", &hub), ("s3://models/m", &s3), ("local", &hub)] {
        let endpoint = server.url("");
        let endpoint = endpoint.trim_end_matches('/');
        let output = bigsmall(d, &["restore", url, "-o", "out"], endpoint);
        assert!(output.status.success(), "{url}: {}", stderr(&output));
        assert_eq!(files(&d.join("out")), ["config.json", "model.safetensors"], "{url}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("left out .GIT") && said.contains("more (--hidden"), "{said}");
        let hidden = ["restore", url, "-o", "all", "--hidden", "--json"];
        let output = bigsmall(d, &hidden, endpoint);
        assert!(output.status.success(), "{url}: {}", stderr(&output));
        let taken =
            [".envrc", ".ssh/authorized_keys", "config.json", "model.safetensors", "sub/.bashrc"];
        assert_eq!(files(&d.join("all")), taken, "{url}");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["left_out"].as_array().unwrap().len(), 5, "{said}");
        for out in ["out", "all"] {
            std::fs::remove_dir_all(d.join(out)).unwrap();
        }
    }
}

#[test]
// N-03, N-04, N-05
fn lists_without_an_end_are_refused() {
    type List = fn(&Request, usize) -> Reply;
    fn key(n: usize) -> String {
        format!("m/{n}.txt")
    }
    let cases: [(&str, i32, List); 5] = [
        ("twice", 1, |_, _| page(&[key(1)], Some("again"))),
        ("twice", 1, |_, _| page(&[key(1), key(2), key(1)], None)),
        ("at most 100 pages", 1, |_, n| page(&[], Some(&n.to_string()))),
        ("at most 100 pages", 1, |_, _| page(&[], Some("again"))),
        ("at most 5000, found 5001 or more", 5, |_, n| {
            let keys: Vec<String> = (0..1000).map(|i| key(1000 * n + i)).collect();
            page(&keys, Some(&n.to_string()))
        }),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (expected, code, list) in cases {
        let server = s3(list, shard());
        let endpoint = server.url("");
        let args = ["verify", "s3://models/m", "--max-files", "5000"];
        let output = bigsmall(dir.path(), &args, endpoint.trim_end_matches('/'));
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert!(server.n_requests() <= 101, "{}", server.n_requests());
    }
    // As many long names as the limit allows, and more than a list may have.
    let list = |names: usize, per_page: usize| {
        move |_: &Request, n: usize| {
            let key = |i| format!("m/{}{i:07}.bs", "x".repeat(990));
            let last = names.min((n + 1) * per_page);
            let keys: Vec<String> = (n * per_page..last).map(key).collect();
            page(&keys, (last < names).then_some(n.to_string()).as_deref())
        }
    };
    for (names, most, said) in
        [(3, "3", ""), (3, "2", "at most 2, found 3 or more"), (70_000, "100000", "bytes together")]
    {
        let server = s3(list(names, 1000), shard());
        let args = ["verify", "s3://models/m", "--max-files", most];
        let output = bigsmall(dir.path(), &args, server.url("").trim_end_matches('/'));
        let expected = if said.is_empty() { 0 } else { 5 };
        assert_eq!(output.status.code(), Some(expected), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
    // The list of a Hub is one text.
    for (names, most, code) in
        [(["a", "b", "a", "m.bs"], "9", 1), (["a", "b", "c", "m.bs"], "3", 5)]
    {
        let server = hub(&names, shard());
        let endpoint = server.url("");
        let args = ["verify", "hf://o/n", "--max-files", most];
        let output = bigsmall(dir.path(), &args, endpoint.trim_end_matches('/'));
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    }
}

#[test]
// R-07
fn no_answer_is_longer_than_what_was_asked_for() {
    const GIB: u64 = 1 << 30;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let file = Arc::new(shard());
    // What is too long: the end of the shard, a later range, a page of the list, an error's body.
    for (case, url) in [
        ("suffix", "s3://models/m/model.bs"),
        ("range", "s3://models/m/model.bs"),
        ("list", "s3://models/m"),
        ("error", "s3://models/m"),
    ] {
        let file = Arc::clone(&file);
        for says_so in [true, false] {
            let file = Arc::clone(&file);
            let server = Server::new(move |request, _| {
                let endless = |reply: Reply| {
                    let reply = Reply { endless: 20 * GIB, ..reply };
                    if says_so { reply } else { reply.with("Connection", "close") }
                };
                let reply = serve(request, &file, "f");
                let reply = reply.with("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT");
                match case {
                    "suffix" if request.is_suffix() => endless(reply),
                    "range" if !request.is_suffix() => endless(reply),
                    "list" => endless(page(&[], None)),
                    "error" => endless(Reply { status: 403, ..Reply::default() }),
                    _ => reply,
                }
            });
            let endpoint = server.url("");
            let output = bigsmall(d, &["verify", url], endpoint.trim_end_matches('/'));
            // After a bad answer for the end of a file, the length and a range are asked for.
            let code = if case == "suffix" { 0 } else { 1 };
            assert_eq!(output.status.code(), Some(code), "{case}: {}", stderr(&output));
            // `object_store` itself refuses an answer without a length.
            let said = ["at most", "Content-Length Header missing"];
            let said = said.iter().any(|said| stderr(&output).contains(said));
            assert!(said || code == 0, "{case}: {}", stderr(&output));
            // What is sent beyond the bound waits in the buffers of the sockets.
            assert!(server.sent() < 128 << 20, "{case}: {} bytes", server.sent());
        }
    }
}

#[test]
// U-01, U-02, U-03
fn words_of_servers_and_names_do_nothing_to_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}gpj\r\nbigsmall: done";
    let long = format!("{evil}{}", "x".repeat(300_000));
    // Bodies of errors, and a place to go on to.
    let server = Server::new(move |request, _| match request.path.contains("redirect") {
        true => Reply::redirect("ftp://\u{9b}31m/\u{202e}"),
        false => Reply { status: 403, body: long.clone().into_bytes(), ..Reply::default() },
    });
    let endpoint = server.url("");
    let redirect = server.url("redirect/m.bs");
    for url in ["s3://models/m", "s3://models/m/model.bs", "hf://o/n", &redirect] {
        let output = bigsmall(d, &["verify", url], endpoint.trim_end_matches('/'));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(!stderr(&output).is_empty());
    }
    // Names of files, tensors and keys, in all that is printed.
    let name = "\u{1b}[31m\u{202e}x\u{7f}\u{9b}\n.safetensors";
    std::fs::create_dir(d.join("in")).unwrap();
    let tensor_name = format!("\u{1b}[31m\u{9b}\u{202e}{}", "n".repeat(60_000));
    write(&d.join("in").join(name), &[tensor(&tensor_name, Dtype::U8, &[1], vec![1])]);
    for args in [
        &["compress", "in", "-o", "small", "--md5"][..],
        &["compress", "in", "-o", "other", "--json"],
        &["verify", "small"],
        &["verify", "small", "--md5", "--json"],
        &["restore", "small", "-o", "back", "--json"],
        &["inspect", "small"],
        &["inspect", "small", "--json"],
        &["estimate", "in"],
    ] {
        let output = bigsmall(d, args, "http://localhost:1");
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        if args.contains(&"--json") {
            let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let whole = |sums: &serde_json::Value| sums.get(&tensor_name).is_some();
            assert!(!args.contains(&"verify") || whole(&found["files"][0]["md5"]), "{found}");
        }
    }
    let card = std::fs::read_to_string(d.join("small/README.md")).unwrap();
    assert!(!card.contains(|c: char| c != '\n' && (c.is_control() || c == '\u{202e}')));
    let broken = d.join("small").join(name.replace(".safetensors", ".bs"));
    let mut bytes = std::fs::read(&broken).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&broken, bytes).unwrap();
    let output = bigsmall(d, &["verify", "small"], "http://localhost:1");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
// R-10
fn a_signature_for_an_object_store_goes_to_no_other_host() {
    let dir = tempfile::tempdir().unwrap();
    let file = shard();
    let other = Server::new(move |request, _| {
        let date = "Thu, 01 Jan 2026 00:00:00 GMT";
        serve(request, &file, "f").with("Last-Modified", date)
    });
    let to = other.other_host("elsewhere");
    let store = Server::new(move |_, _| Reply::redirect(&to));
    let args = ["inspect", "s3://models/m/model.bs"];
    let output = bigsmall(dir.path(), &args, &store.url(""));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(store.requests().iter().all(|request| request.header("authorization").is_some()));
    assert!(other.n_requests() > 0);
    for request in other.requests() {
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
// R-09
fn a_list_of_millions_of_things_takes_little_more_than_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = shard();
    let server = Server::new(move |request, _| {
        if !request.path.starts_with("/api/") {
            return serve(request, &file, "f");
        }
        let many = r#"{"":0},"#.repeat(8_000_000);
        let all = format!(r#"{{"sha":"abc","siblings":[{{"rfilename":"m.bs"}}],"x":[{many}0]}}"#);
        serve(&Request::default(), all.as_bytes(), "l")
    });
    let mut shell = Command::new("sh");
    for (name, value) in command(dir.path(), &[], &server.url("")).get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.args(["-c", "ulimit -v 1500000; exec \"$0\" inspect hf://o/n"]);
    let output = shell.arg(env!("CARGO_BIN_EXE_bigsmall")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
// U-04
fn what_is_secret_in_a_url_is_not_printed() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let file = shard();
    let good = Server::new(move |request, _| serve(request, &file, "f"));
    let status = |status| move |_: &Request, _| Reply::status(status);
    let moved = |request: &Request, _| {
        let more = if request.path.contains("again") { "" } else { "again" };
        Reply::redirect(format!("ftp://u:s3cret@h/{more}?s3cret"))
    };
    let servers = [good, Server::new(status(403)), Server::new(status(416)), Server::new(moved)];
    for (n, server) in servers.iter().enumerate() {
        let url = server.url("m.bs?X-Sig=s3cret#s3cret").replace("http://", "http://u:s3cret@");
        for json in [&["--json"][..], &[]] {
            let args = [&["verify", &url], json].concat();
            let output = bigsmall(d, &args, "http://localhost:1");
            assert_eq!(output.status.success(), n == 0, "{}", stderr(&output));
            let all = [&output.stdout[..], &output.stderr].concat();
            let text = String::from_utf8(all).unwrap();
            assert!(!text.is_empty() && !text.contains("s3cret"), "{text}");
        }
    }
    let url = "http://u:s3cret@localhost:1/m.bs?s3cret";
    for args in [["inspect", url], ["compress", url], ["estimate", url], ["transcode", url]] {
        let args = [&args[..], &["-o", "x"]].concat();
        let args = if args[0] == "inspect" || args[0] == "estimate" { &args[..2] } else { &args };
        let output = bigsmall(d, args, "http://u:s3cret@localhost:1");
        assert!(!output.status.success() && !stderr(&output).contains("s3cret"), "{output:?}");
    }
}

/// Waits for the end of a process, and fails if it does not come.
fn ended(child: Child) -> Output {
    let pid = child.id();
    let begin = Instant::now();
    let waiting = std::thread::spawn(move || child.wait_with_output().unwrap());
    while !waiting.is_finished() {
        if begin.elapsed() > HANG {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            panic!("the command does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    waiting.join().unwrap()
}

#[test]
// X-02
fn a_signal_ends_every_wait() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let file = shard();
    std::fs::write(d.join("m.bs"), &file).unwrap();
    common::restore(&d.join("m.bs"), &d.join("m")).unwrap();
    std::fs::create_dir(d.join("folder")).unwrap();
    let silent = || Reply { silence: Some(Duration::from_secs(3600)), ..Reply::default() };
    let hub = move |_: &Request, _| silent();
    let list = Server::new(hub);
    // The end of a shard comes, and its values do not.
    let values = Server::new(move |request, _| {
        let reply = match request.path.contains("list-type") {
            true => return page(&["m/model.bs".into()], None),
            false if request.is_suffix() => serve(request, &file, "f"),
            false => silent(),
        };
        reply.with("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
    });
    let busy = Server::new(|_, _| Reply::status(503).with("Retry-After", 60));
    let (list_url, busy_url) = (list.url("m.bs"), busy.url("m.bs"));
    let before = names(d);
    let cases: [(&[&str], &Server); 10] = [
        (&["inspect", &list_url], &list),
        (&["inspect", "hf://o/n"], &list),
        (&["inspect", "s3://models/m"], &list),
        (&["verify", "s3://models/m"], &values),
        (&["restore", "s3://models/m", "-o", "out"], &values),
        (&["restore", "s3://models/m/model.bs", "-o", "out"], &values),
        (&["verify", &list_url, "--md5"], &list),
        (&["verify", &busy_url], &busy),
        (&["bench", "m", "--threads", "1"], &list),
        (&["bench", "m.bs", "--threads", "1"], &list),
    ];
    // What a parent ignores, such as `nohup`, the command ignores too.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0");
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    let mut signals = vec![("TERM", 15), ("INT", 2), ("HUP", 1)];
    signals.retain(|(name, number)| {
        let ignored = mask >> (number - 1) & 1 == 1;
        if ignored {
            eprintln!("SKIPPED: SIG{name}, which the parent of this test ignores");
        }
        !ignored
    });
    for (n, (args, server)) in cases.into_iter().enumerate() {
        let (signal, number) = signals[n % signals.len()];
        let (endpoint, n_before) = (server.url(""), server.n_requests());
        let child = command(d, args, endpoint.trim_end_matches('/')).spawn().unwrap();
        // Until it waits.
        let begin = Instant::now();
        while args[0] != "bench" && server.n_requests() == n_before && begin.elapsed() < HANG {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        let output = ended(child);
        assert_eq!(output.status.signal(), Some(number), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("cancelled"), "{args:?}: {}", stderr(&output));
        assert_eq!(names(d), before, "{args:?} {signal}");
    }
}

#[test]
// X-02
fn a_signal_ends_the_wait_for_a_reader_of_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let one = |i| tensor(&format!("layers.{i}.weight"), Dtype::U8, &[1], vec![1]);
    write(&d.join("m"), &(0..5000).map(one).collect::<Vec<_>>());
    common::compress(&d.join("m"), &d.join("m.bs")).unwrap();
    // More text than a pipe holds, and nobody reads it.
    let mut child = command(d, &["inspect", "m.bs"], "").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it does not wait");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > HANG {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}

#[test]
// N-01
fn an_index_file_names_nothing_in_gits_folder() {
    let dir = tempfile::tempdir().unwrap();
    let index = serde_json::json!({ "weight_map": BTreeMap::from([("w", ".GIT/m.bs")]) });
    std::fs::write(dir.path().join("model.bs.index.json"), index.to_string()).unwrap();
    let output = bigsmall(dir.path(), &["inspect", "."], "http://localhost:1");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}
