//! A world in a temporary folder: a platform and a router in memory, and records whose texts attack whoever shows them.

use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::domain::*;
use crate::platform::{Code, Limits, Memory, Network, Platform, Spec};
use crate::reconcile::World;
use crate::router::Router;
use crate::server::{Parts, open_world};
use crate::store::DeliveryRecord;
use crate::web::{Shared, share};
use actix_web::web::Data;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Breaks out of text, of quotes, of a terminal, of a line's direction and of a template.
pub const HOSTILE: &str = "x\"'><script>alert(1)</script><img src=x onerror=alert(2)>\u{202e}\u{1b}[31m\u{1b}]0;t\u{7}&lt;{{ 7 * 7 }}{% raw %}\0\u{9b}31m";

pub const START: Timestamp = Timestamp(1_700_000_000_000);

pub struct House {
    pub shared: Data<Shared>,
    pub platform: Memory,
    pub asked_down: mpsc::Receiver<()>,
    /// Removed with the house.
    _folder: tempfile::TempDir,
}

/// A GitHub that has nothing of what it is asked for. It ends with the test's process.
fn empty_github() -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            let body = r#"{"message":"Not Found"}"#;
            let answer = format!(
                "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = (&stream).write_all(answer.as_bytes());
        }
    });
    url
}

impl House {
    pub fn empty() -> House {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
        config.github.token = Some(Secret::new("token"));
        config.github.api_url = empty_github();
        let clock = Clock::manual(START);
        let platform = Memory::new(clock.clone());
        let parts = Parts {
            clock,
            platform: Platform::Memory(platform.clone()),
            router: Router::memory().0,
            router_port: 8000,
            outside: None,
        };
        let world = open_world(config, parts).expect("a world");
        let (ask_down, asked_down) = mpsc::channel(1);
        House { shared: share(Arc::new(world), ask_down), platform, asked_down, _folder: folder }
    }

    /// As if a build had made it: what its releases are served from.
    pub fn keep_archive(&self, slug: &SlugDigest) {
        let path = self.world().folder("archives").join(format!("{slug}.tar.zst"));
        std::fs::write(path, "").expect("an archive");
    }

    pub fn world(&self) -> &World {
        &self.shared.world
    }

    /// Something of everything that a page can show.
    pub async fn hostile() -> House {
        let house = House::empty();
        house.fill().await;
        house
    }

    async fn fill(&self) {
        let release_process =
            self.start("hello-staging.v2.web.1.a1", &[("app", "hello-staging"), ("release", "v2"), ("type", "web")]);
        let node = self.start("run-3.test.1.a1", &[("run", "3"), ("type", "test"), ("ordinal", "1"), ("attempt", "1")]);
        for id in [&release_process, &node] {
            self.platform.say(id, HOSTILE);
            self.platform.say(id, "\u{1b}[1;32mgreen\u{1b}[0m");
        }
        self.world()
            .store
            .transact(|tx| {
                let repository = repository();
                tx.put_repository(&repository)?;
                let other = Repository {
                    id: RepositoryId(2),
                    owner: HOSTILE.to_owned(),
                    name: HOSTILE.to_owned(),
                    label: "other".to_owned(),
                    ..repository.clone()
                };
                tx.put_repository(&other)?;
                for number in 1..=3 {
                    tx.put_pull(&pull(number))?;
                }
                let mut staging = app("hello-staging", Stage::Staging, vec![live(1, 1), live(2, 2)], Some(2));
                staging.one_offs = vec![one_off(None), one_off(Some(Ended::Exited { code: 3 }))];
                let vars = ["TOKEN", "OTHER"].map(|name| {
                    let value = ConfigValue::From { stage: ConfigStage::Staging };
                    (name.to_owned(), ConfigVar { value, set_at: START, by: HOSTILE.to_owned() })
                });
                let scope = ConfigScope::Stage(RepositoryId(1), ConfigStage::Review);
                tx.put_config(&scope, &ConfigVars { vars: vars.into() })?;
                let mut waiting = app("waiting", Stage::Review(PullNumber(3)), vec![deploy(1)], None);
                waiting.deploys[0].missing = vec![HOSTILE.to_owned()];
                tx.put_app(&waiting)?;
                let report = FarewellReport { ended: Ended::TimeLimit, tail: vec![HOSTILE.to_owned()], at: START };
                tx.put_farewell(RepositoryId(1), PullNumber(3), Some(&report))?;
                tx.put_app(&staging)?;
                for number in 1..=2 {
                    tx.put_release(&release("hello-staging", number, Cause::Push))?;
                }
                let from = Cause::Promotion {
                    from: "hello-staging".parse().unwrap(),
                    release: ReleaseNumber(1),
                    slug: digest(),
                    canary: None,
                    hotfix: false,
                };
                let mut promoted = live(1, 1);
                promoted.cause = from.clone();
                tx.put_app(&app("hello-production", Stage::Production, vec![promoted], Some(1)))?;
                tx.put_release(&release("hello-production", 1, from))?;
                for (place, failure) in failures().into_iter().enumerate() {
                    let name = format!("failed-{place}");
                    let mut rolled_back = failed(2, failure);
                    rolled_back.cause = Cause::Rollback { to: ReleaseNumber(1), guard: None };
                    tx.put_app(&app(&name, Stage::Review(PullNumber(1)), vec![live(1, 1), rolled_back], Some(1)))?;
                    tx.put_release(&release(&name, 1, Cause::Push))?;
                }
                for (place, wanted) in [Wanted::Held, Wanted::Gone, Wanted::Running].into_iter().enumerate() {
                    let mut app = app(&format!("odd-{place}"), Stage::Review(PullNumber(2)), vec![deploy(1)], None);
                    app.wanted = wanted;
                    tx.put_app(&app)?;
                }
                let mut number = 0;
                for state in run_states() {
                    number += 1;
                    tx.put_run(&TestRun { number: RunNumber(number), ordinal: number, ..state })?;
                }
                for (place, build) in builds().into_iter().enumerate() {
                    tx.put_build(&Build { key: BuildKey(format!("{place:016x}")), ..build })?;
                }
                tx.put_slug(&slug())?;
                tx.put_pipeline(&pipeline_state())?;
                for (place, command) in commands().into_iter().enumerate() {
                    tx.put_command(&CommandRecord { comment: place as u64, ..command })?;
                }
                for (place, state) in delivery_states().into_iter().enumerate() {
                    let body = format!("{{\"title\": {}}}", serde_json::to_string(HOSTILE).unwrap());
                    let payload = tx.put_blob(body.into())?;
                    let delivery = Delivery {
                        id: format!("delivery-{place}"),
                        event: HOSTILE.to_owned(),
                        action: Some(HOSTILE.to_owned()),
                        repository: Some(HOSTILE.to_owned()),
                        sender: Some(HOSTILE.to_owned()),
                        received_at: START,
                        bytes: 10,
                        content_type: Some("application/json".to_owned()),
                        state,
                        attempts: 2,
                    };
                    tx.put_delivery(&DeliveryRecord { delivery, payload })?;
                }
                let next = tx.next_number("run")?;
                assert!(next <= number);
                while tx.next_number("run")? < number {}
                Ok::<(), crate::store::StoreError>(())
            })
            .await
            .expect("the records are written");
    }

    pub fn start(&self, id: &str, labels: &[(&str, &str)]) -> ProcessId {
        let id: ProcessId = id.parse().expect("a process id");
        let memory = &self.platform;
        let spec = Spec {
            id: id.clone(),
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            name: crate::web::logs::name_of(&id).to_owned(),
            code: Code::None,
            command: "sleep 1000".to_owned(),
            environment: BTreeMap::new(),
            limits: Limits::default(),
            network: Network::Isolated,
            port: None,
            time_limit: None,
            grace: Duration::from_secs(1),
            binds: Vec::new(),
            services: Vec::new(),
            walls: crate::platform::Walls::Sandbox,
            masked: Vec::new(),
        };
        let platform = Platform::Memory(memory.clone());
        futures_util::FutureExt::now_or_never(platform.start(&spec))
            .expect("memory answers at once")
            .expect("it starts");
        id
    }
}

pub fn repository() -> Repository {
    Repository {
        id: RepositoryId(1),
        owner: "acme".to_owned(),
        name: "hello".to_owned(),
        default_branch: HOSTILE.to_owned(),
        private: true,
        html_url: "javascript:alert(1)".to_owned(),
        installation: None,
        label: "hello".to_owned(),
        granted: true,
        missing_since: None,
    }
}

fn pull(number: u64) -> Pull {
    Pull {
        repository: RepositoryId(1),
        number: PullNumber(number),
        title: HOSTILE.to_owned(),
        author: HOSTILE.to_owned(),
        head: sha('a'),
        branch: HOSTILE.to_owned(),
        head_repository: Some(RepositoryId(number)),
        base_branch: HOSTILE.to_owned(),
        open: true,
        merged: false,
        html_url: format!("https://github.com/{HOSTILE}"),
        draft: false,
        labels: vec![HOSTILE.to_owned()],
        by_bot: false,
        skip: false,
        parked: None,
        untouched: Vec::new(),
        pages: Vec::new(),
    }
}

pub fn sha(digit: char) -> Sha {
    digit.to_string().repeat(40).parse().expect("a commit")
}

pub fn digest() -> SlugDigest {
    "d".repeat(64).parse().expect("a digest")
}

pub fn deploy(number: u64) -> Deploy {
    let by = Some(HOSTILE.to_owned());
    let new = Deploy::new(sha('a'), HOSTILE.to_owned(), Cause::Push, by, START);
    Deploy { number, gate: Some(RunNumber(1)), ..new }
}

pub fn live(number: u64, release: u32) -> Deploy {
    Deploy {
        tree: Some(sha('b')),
        release: Some(ReleaseNumber(release)),
        released: true,
        outcome: Some(Outcome::Live { at: START }),
        ..deploy(number)
    }
}

fn failed(number: u64, failure: Failure) -> Deploy {
    Deploy { tree: Some(sha('b')), outcome: Some(Outcome::Failed { failure, at: START }), ..deploy(number) }
}

pub fn app(name: &str, stage: Stage, deploys: Vec<Deploy>, live: Option<u32>) -> App {
    let new = App::new(name.parse().expect("an app's name"), RepositoryId(1), AppKey::from(stage), START);
    App {
        id: "0".repeat(32),
        last_release: live.unwrap_or(0),
        deploys,
        live: live.map(ReleaseNumber),
        untrusted: true,
        ..new
    }
}

pub fn release(app: &str, number: u32, cause: Cause) -> Release {
    Release {
        app: app.parse().expect("an app's name"),
        number: ReleaseNumber(number),
        deploy: u64::from(number),
        slug: digest(),
        commit: sha('a'),
        branch: HOSTILE.to_owned(),
        cause,
        by: Some(HOSTILE.to_owned()),
        created_at: START,
        config: Sealed(String::new()),
        process_types: [("web".to_owned(), HOSTILE.to_owned())].into(),
        formation: BTreeMap::new(),
    }
}

fn one_off(ended: Option<Ended>) -> OneOff {
    OneOff {
        number: if ended.is_some() { 1 } else { 2 },
        release: ReleaseNumber(2),
        command: HOSTILE.to_owned(),
        size: "basic".to_owned(),
        time_limit: 60,
        by: HOSTILE.to_owned(),
        asked_at: START,
        stop: false,
        ended,
    }
}

fn ends() -> Vec<Ended> {
    vec![
        Ended::Exited { code: 0 },
        Ended::Exited { code: 3 },
        Ended::Signalled { signal: 9 },
        Ended::OutOfMemory,
        Ended::TimeLimit,
        Ended::OutputLimit,
        Ended::DiskLimit,
        Ended::Lost,
        Ended::CouldNotStart { detail: HOSTILE.to_owned() },
    ]
}

fn failures() -> Vec<Failure> {
    let detail = || HOSTILE.to_owned();
    let tail = || vec![HOSTILE.to_owned(), "<b>".to_owned()];
    let mut all = vec![
        Failure::Source { detail: detail() },
        Failure::Configuration { file: detail(), detail: detail() },
        Failure::NotBuildable { looked_for: tail() },
        Failure::SlugTooLarge { detail: detail() },
        Failure::TooManyFiles { detail: detail() },
        Failure::SlugExpands { detail: detail() },
        Failure::LeadsOutside { detail: detail() },
        Failure::Unreadable { detail: detail() },
        Failure::BadResult { detail: detail() },
        Failure::Buildpack { detail: detail() },
        Failure::MissingConfig { names: tail() },
        Failure::NothingToRun,
        Failure::NoRoom { most: 500 },
        Failure::NotHealthy { process: detail(), seconds: 60, seen: detail(), tail: tail() },
        Failure::RightLost { login: detail() },
        Failure::Barred { by: Refusal::Locked { stage: StageKind::Production, by: detail(), reason: detail() } },
        Failure::Tests { run: RunNumber(1) },
        Failure::Worse {
            release: ReleaseNumber(2),
            before: ReleaseNumber(1),
            canary: true,
            finding: Finding::Errors { errors: 9, requests: 80, before_errors: 0, before_requests: 1000 },
        },
        Failure::Worse {
            release: ReleaseNumber(2),
            before: ReleaseNumber(1),
            canary: false,
            finding: Finding::Slow { p95_ms: 900, before_p95_ms: 90, limit_ms: 140, over: 60, requests: 300 },
        },
        Failure::Internal { detail: detail() },
    ];
    for ended in ends() {
        all.push(Failure::Build { ended: ended.clone(), tail: tail() });
        all.push(Failure::ReleasePhase { ended: ended.clone(), tail: tail() });
        let finding = Finding::Crashes { process: detail(), crashes: 3, ended: ended.clone() };
        all.push(Failure::Worse { release: ReleaseNumber(2), before: ReleaseNumber(1), canary: false, finding });
        all.push(Failure::Postdeploy { ended: ended.clone(), tail: tail() });
        all.push(Failure::Crashed { process: detail(), ended, tail: tail() });
    }
    all
}

pub fn run(verdict: Option<Verdict>) -> TestRun {
    TestRun {
        number: RunNumber(0),
        repository: RepositoryId(1),
        ordinal: 0,
        pull: Some(PullNumber(1)),
        part: Part::OWN,
        branch: HOSTILE.to_owned(),
        commit: sha('a'),
        tree: None,
        created_at: START,
        started_at: None,
        nodes: 0,
        results: BTreeMap::new(),
        cancelled: None,
        verdict,
        finished_at: None,
        split: None,
        only_failed_of: None,
        repeats: None,
        untrusted: true,
        setup: Setup::Open,
    }
}

fn run_states() -> Vec<TestRun> {
    let failure = || Failure::Build { ended: Ended::Exited { code: 1 }, tail: vec![HOSTILE.to_owned()] };
    let started = |verdict: Option<Verdict>| TestRun {
        tree: Some(sha('b')),
        started_at: Some(START),
        nodes: 2,
        finished_at: verdict.as_ref().map(|_| START + Duration::from_secs(3)),
        ..run(verdict)
    };
    let result = |node: u16, ended: Ended, failures: Vec<TestFailure>| NodeResult {
        process: format!("run-1.test.{node}.a1").parse().unwrap(),
        started_at: START,
        finished_at: START + Duration::from_secs(2),
        ended,
        counts: Some(Counts { passed: 3, failed: failures.len() as u64, skipped: 1 }),
        failures,
        tail: vec![HOSTILE.to_owned()],
        setup_failed: false,
        unproven: false,
    };
    let failure_of_test =
        || TestFailure { name: HOSTILE.to_owned(), message: format!("{HOSTILE}\n{HOSTILE}"), ..TestFailure::default() };
    let mut all = vec![run(None), TestRun { tree: Some(sha('b')), ..run(None) }, started(None)];
    for ended in ends() {
        let mut failed = started(Some(Verdict::Failed));
        failed.results.insert(0, result(0, ended.clone(), vec![failure_of_test(); 60]));
        failed.results.insert(1, NodeResult { setup_failed: true, ..result(1, ended, Vec::new()) });
        all.push(failed);
    }
    for cancelled in [
        Cancelled::Newer { commit: sha('c') },
        Cancelled::Closed,
        Cancelled::GrantEnded,
        Cancelled::By { login: HOSTILE.to_owned() },
    ] {
        all.push(TestRun { cancelled: Some(cancelled), ..started(Some(Verdict::Cancelled)) });
    }
    for verdict in [
        Verdict::Passed,
        Verdict::Reused { run: RunNumber(1) },
        Verdict::NoTests,
        Verdict::Untouched,
        Verdict::Errored { failure: failure() },
    ] {
        all.push(started(Some(verdict)));
    }
    all
}

fn builds() -> Vec<Build> {
    let build = |state| Build {
        key: BuildKey(String::new()),
        repository: RepositoryId(1),
        commit: sha('a'),
        tree: sha('b'),
        attempt: 2,
        process: "build.0.a1".parse().unwrap(),
        started_at: START,
        state,
        cache_of: None,
        root: String::new(),
        buildpacks: Vec::new(),
        phase: BuildPhase::Pack,
    };
    let mut all = vec![
        build(BuildState::Running),
        build(BuildState::Succeeded { slug: digest(), at: START }),
        build(BuildState::Overtaken { at: START }),
    ];
    all.extend(failures().into_iter().map(|failure| build(BuildState::Failed { failure, at: START })));
    all
}

fn slug() -> Slug {
    Slug {
        digest: digest(),
        repository: RepositoryId(1),
        tree: sha('b'),
        commit: sha('a'),
        created_at: START,
        bytes: 1_000_000,
        files: 7,
        buildpacks: vec![HOSTILE.to_owned()],
        process_types: [("web".to_owned(), HOSTILE.to_owned())].into(),
        config_vars: BTreeMap::new(),
        test_command: None,
        test_layer: None,
        image: None,
        manifest: None,
        settings: None,
        warnings: vec![HOSTILE.to_owned()],
    }
}

fn commands() -> Vec<CommandRecord> {
    let record = |command, answer| CommandRecord {
        repository: RepositoryId(1),
        pull: PullNumber(1),
        comment: 0,
        place: 0,
        command,
        by: HOSTILE.to_owned(),
        given_at: START,
        answer,
        notes: notes(),
    };
    let promote = || Command::Promote { release: None, to: Some(HOSTILE.to_owned()), hotfix: None, canary: None };
    let mut all: Vec<CommandRecord> =
        refusals().into_iter().map(|reason| record(promote(), Answer::Refused { reason })).collect();
    let unknown = Command::Unknown { word: HOSTILE.to_owned(), nearest: Some(HOSTILE.to_owned()) };
    all.push(record(unknown, Answer::Refused { reason: Refusal::UnknownCommand }));
    all.push(record(promote(), Answer::Deploying { app: "hello-production".parse().unwrap(), deploy: 1 }));
    all.push(record(Command::Retest { failed: true }, Answer::Testing { run: RunNumber(1) }));
    all.push(record(Command::Help, Answer::Helped));
    all.push(record(Command::Status, Answer::Told));
    all.push(record(Command::Cancel, Answer::Done));
    let waiting = Answer::Waiting { app: "hello-production".parse().unwrap(), release: ReleaseNumber(2) };
    all.push(record(promote(), waiting));
    all
}

fn pipeline_state() -> PipelineState {
    PipelineState {
        read_at: Some(sha('a')),
        error: Some(HOSTILE.to_owned()),
        locks: vec![Lock {
            stage: StageKind::Production,
            reason: HOSTILE.to_owned(),
            by: HOSTILE.to_owned(),
            at: START,
        }],
        freeze: Some(Freeze {
            until: START + Duration::from_secs(1_000_000_000),
            reason: HOSTILE.to_owned(),
            by: HOSTILE.to_owned(),
        }),
        ..PipelineState::new(RepositoryId(1))
    }
}

fn notes() -> Vec<Note> {
    vec![
        Note::Hotfix { reason: HOSTILE.to_owned(), over: refusals().into_iter().nth(9) },
        Note::NotUndone { releases: vec![ReleaseNumber(1)] },
        Note::Approved { by: HOSTILE.to_owned() },
    ]
}

fn refusals() -> Vec<Refusal> {
    let (text, release, stage) = (|| HOSTILE.to_owned(), ReleaseNumber(1), StageKind::Production);
    vec![
        Refusal::NoRight { role: text(), needed: Some(Access::Maintain), teams: vec![text()] },
        Refusal::NothingOnStaging,
        Refusal::StagingBusy,
        Refusal::AlreadyThere { app: "hello-production".parse().unwrap(), release },
        Refusal::NoSuchRelease,
        Refusal::NothingToTest,
        Refusal::NothingToRetry,
        Refusal::NotTested { commit: sha('a') },
        Refusal::NotOnStaging { release, live: ReleaseNumber(2) },
        Refusal::Locked { stage, by: text(), reason: text() },
        Refusal::Frozen { stage, until: text(), by: Some(text()), reason: text() },
        Refusal::SecondPerson,
        Refusal::FirstLostRight { login: text() },
        Refusal::Closed,
        Refusal::NeedsApproval { commit: sha('a') },
        Refusal::NotTheHead { head: sha('a') },
        Refusal::Full { limit: 3 },
        Refusal::NoApp,
        Refusal::NothingToCancel,
        Refusal::NothingFailed,
        Refusal::NotLocked { stage },
        Refusal::NothingExpires,
        Refusal::NoSuchTarget { to: text() },
        Refusal::NoSuchProcess { process: text(), known: vec![text()] },
        Refusal::NoSuchSize { size: text(), known: vec![text()] },
        Refusal::TooManyProcesses { wanted: 9, most: 8, everywhere: true },
        Refusal::Awake,
        Refusal::Malformed,
        Refusal::NotOffered,
    ]
}

fn delivery_states() -> Vec<DeliveryState> {
    let why = [
        IgnoredBecause::UnreadEvent,
        IgnoredBecause::UnreadAction,
        IgnoredBecause::OwnDoing,
        IgnoredBecause::NothingToDo,
    ];
    let mut all: Vec<DeliveryState> = why.into_iter().map(|why| DeliveryState::Ignored { why, at: START }).collect();
    all.push(DeliveryState::Queued);
    all.push(DeliveryState::Applied { decisions: vec![HOSTILE.to_owned(), "two".to_owned()], at: START });
    all.push(DeliveryState::Retrying { error: HOSTILE.to_owned(), at: START });
    all.push(DeliveryState::Parked { error: HOSTILE.to_owned(), at: START });
    all
}
