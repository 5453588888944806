//! The control plane is killed at every outside call of the story, one after the other, started again, and must end in
//! the same state: no duplicate comment, check or deployment, nothing lost.

use crate::support::town::{OWNER, Pull, Settled, Town};
use landfall::outside::Outside;
use std::fmt::Write;
use std::sync::Arc;

/// What a person does, in acts. After each one everything settles.
const ACTS: usize = 5;

struct Played {
    repository: String,
    commits: Vec<String>,
    pulls: Vec<Pull>,
    command: Option<u64>,
}

async fn act(town: &Town, number: usize, played: &mut Played) {
    let repository = played.repository.clone();
    match number {
        0 => {
            played.commits.push(town.push(&repository, "change", "two").await);
            played.pulls.push(town.open_pull(&repository, "change", "Say two").await);
        }
        1 => played.commits.push(town.push(&repository, "change", "three").await),
        2 => played.commits.push(town.merge(&played.pulls[0]).await),
        3 => played.command = Some(town.say(&played.pulls[0], "/promote", OWNER).await),
        _ => {
            played.commits.push(town.push(&repository, "other", "four").await);
            let pull = town.open_pull(&repository, "other", "Say four").await;
            played.pulls.push(pull.clone());
            town.close(&pull).await;
        }
    }
}

/// Plays the story with a kill at the `n`-th crossing (0: none); gives the end state, and the crossings' names.
async fn play(n: u64) -> (String, Vec<&'static str>) {
    let outside = Outside::stopping_at(n);
    let mut town = Town::start_armed(outside.clone()).await;
    let repository = town.make_repository("hello", "one").await;
    let first = town.head(&repository, "main").await;
    let mut played = Played { repository, commits: vec![first], pulls: Vec::new(), command: None };
    town.settle_through_a_kill(&outside).await;
    for number in 0..ACTS {
        act(&town, number, &mut played).await;
        town.settle_through_a_kill(&outside).await;
    }
    // How often a build is looked at differs a little from run to run, so the last crossings may not come.
    let state = end_state(&town, &played).await;
    town.leave().await;
    (state, outside.names())
}

impl Town {
    /// Settles; if the armed kill strikes, starts the control plane again and settles then.
    async fn settle_through_a_kill(&mut self, outside: &Arc<Outside>) {
        if self.settle().await == Settled::Stopped {
            assert!(outside.has_stopped());
            self.kill().await;
            self.boot(None).await;
            landfall::reconcile::resync(self.world()).await.expect("GitHub can be asked");
            assert_eq!(self.settle().await, Settled::Quiet);
        }
    }
}

/// Everything that people can see, with commits named in the order in which they were made.
async fn end_state(town: &Town, played: &Played) -> String {
    let mut state = String::new();
    for (place, pull) in played.pulls.iter().enumerate() {
        writeln!(state, "comments of pull request {}:", place + 1).unwrap();
        for comment in town.comments(pull).await {
            writeln!(state, "{comment}\n--").unwrap();
        }
    }
    for commit in &played.commits {
        for (conclusion, title, _) in town.checks(&played.repository, commit).await {
            writeln!(state, "check of {commit}: {conclusion}: {title}").unwrap();
        }
    }
    for environment in ["review/pr-1", "review/pr-2", "staging", "production"] {
        for (commit, newest) in town.deployments(&played.repository, environment).await {
            writeln!(state, "deployment of {commit} to {environment}: {newest}").unwrap();
        }
    }
    if let Some(command) = played.command {
        writeln!(state, "reactions: {:?}", town.reactions(&played.repository, command).await).unwrap();
    }
    for app in ["hello-pr-1", "hello-pr-2", "hello-staging", "hello-production"] {
        writeln!(state, "{app} serves {:?}", town.served(app)).unwrap();
    }
    let running: Vec<String> = town.memory.running().iter().map(ToString::to_string).collect();
    writeln!(state, "running: {running:?}").unwrap();
    state = without_times(&state);
    for (place, commit) in played.commits.iter().enumerate() {
        state = state.replace(commit, &format!("commit {}", place + 1));
        state = state.replace(&commit[..7], &format!("commit {}", place + 1));
    }
    state
}

/// Moments differ from round to round.
fn without_times(state: &str) -> String {
    let moment = regex::Regex::new(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").expect("a pattern");
    let lasted = regex::Regex::new(r"after \d+ (s|min|h)\b").expect("a pattern");
    lasted.replace_all(&moment.replace_all(state, "then"), "after a while").into_owned()
}

/// Every so many crossings are killed at, to keep the everyday run short; `LANDFALL_CRASH_STRIDE=1` kills at each.
const STRIDE: usize = 5;

/// Rounds that wait for git and for the disk at the same time.
const AT_A_TIME: usize = 4;

/// Kills at every `step`-th crossing from `first` on.
async fn kill_at_every(first: u64, step: usize) {
    let (expected, crossings) = play(0).await;
    println!("the story crosses to the outside {} times", crossings.len());
    let mut broken = Vec::new();
    let number = |name: &str| {
        let value = std::env::var(name).ok()?;
        Some(value.parse::<usize>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let stride = step * number("LANDFALL_CRASH_STRIDE").unwrap_or(STRIDE).max(1);
    let mine: Vec<u64> = match number("LANDFALL_CRASH_AT") {
        Some(only) => vec![only as u64],
        None => (first..=crossings.len() as u64).step_by(stride).collect(),
    };
    for chunk in mine.chunks(AT_A_TIME) {
        println!("killing at {chunk:?} of {}", crossings.len());
        let rounds = chunk.iter().map(|n| async move { (*n, play(*n).await.0) });
        for (n, state) in futures_util::future::join_all(rounds).await {
            if state != expected {
                println!("killed at crossing {n}, {}:\n{state}", crossings[usize::try_from(n).expect("small") - 1]);
                broken.push(n);
            }
        }
    }
    assert!(broken.is_empty(), "the end state differs after kills at {broken:?}; it should be:\n{expected}");
}

/// Both halves together are every crossing; they are two tests so that they run on two processors.
#[actix_web::test]
async fn a_kill_at_any_odd_outside_call_changes_nothing_in_the_end() {
    kill_at_every(1, 2).await;
}

#[actix_web::test]
async fn a_kill_at_any_even_outside_call_changes_nothing_in_the_end() {
    kill_at_every(2, 2).await;
}
