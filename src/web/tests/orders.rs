//! What the API is told to do, it does once, by the same rules as a comment.

use super::house::{House, app, digest, live, release, repository, run, sha};
use super::pages::{Answered, decoded, get, service};
use crate::domain::*;
use crate::store::{StoreError, queue};
use actix_web::http::StatusCode;
use actix_web::test::TestRequest;
use actix_web::web::Bytes;
use serde_json::{Value, json};

async fn post(service: &impl AsyncFn(TestRequest) -> Answered, path: &str, body: Value) -> (StatusCode, Value) {
    let request = TestRequest::post().uri(path).insert_header(("host", "localhost:8080")).set_json(body);
    let answered = service(request).await;
    (answered.status, serde_json::from_slice(&answered.body).unwrap_or(Value::Null))
}

/// As a browser sends a form of our pages.
fn form(path: &str, body: impl Into<Bytes>) -> TestRequest {
    TestRequest::post()
        .uri(path)
        .insert_header(("host", "localhost:8080"))
        .insert_header(("origin", "http://localhost:8080"))
        .insert_header(("sec-fetch-site", "same-origin"))
        .insert_header(("content-type", "application/x-www-form-urlencoded"))
        .set_payload(body)
}

/// Staging serves v2, production v1 of an older commit, a run is over and one goes on.
async fn house() -> House {
    let house = House::empty();
    let work = |tx: &mut crate::store::Transaction<'_>| {
        tx.put_repository(&repository())?;
        let mut older = live(1, 1);
        older.commit = sha('c');
        tx.put_app(&app("hello-staging", Stage::Staging, vec![older, live(2, 2)], Some(2)))?;
        for number in 1..=2 {
            tx.put_release(&release("hello-staging", number, Cause::Push))?;
        }
        for verdict in [Some(Verdict::Passed), None] {
            let number = RunNumber(tx.next_number("run")?);
            tx.put_run(&TestRun { number, ..run(verdict) })?;
        }
        Ok::<(), StoreError>(())
    };
    house.world().store.transact(work).await.expect("records");
    house.keep_archive(&digest());
    house
}

#[actix_web::test]
async fn orders_are_decided_as_commands_are() {
    let house = house().await;
    let service = service!(house);
    let store = &house.world().store;
    let promote = "/api/v1/pipelines/acme/hello/promote";

    assert_eq!(
        post(&service, promote, json!({})).await,
        (StatusCode::OK, json!({ "app": "hello-production", "deploy": 1, "notes": [] }))
    );
    let production = store.app(&"hello-production".parse().unwrap()).unwrap().expect("production");
    let newest = production.newest().expect("a deploy");
    assert!(matches!(&newest.cause, Cause::Promotion { release: ReleaseNumber(2), .. }));
    assert_eq!(newest.by.as_deref(), Some("operator"));
    assert!(queue::entry(store, "app:hello-production").unwrap().is_some(), "nobody would act on it");
    let (status, answer) = post(&service, promote, json!({})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(answer["error"], "hello-production already has it, as v1.");

    let rollback = "/api/v1/apps/hello-staging/rollback";
    assert_eq!(post(&service, rollback, json!({ "to": "v2" })).await.0, StatusCode::CONFLICT, "it is live");
    assert_eq!(post(&service, rollback, json!({ "to": "v9" })).await.0, StatusCode::CONFLICT);
    assert_eq!(post(&service, rollback, json!({ "to": "latest" })).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(post(&service, rollback, json!({ "to": -1 })).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(post(&service, rollback, json!([])).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(post(&service, rollback, json!({})).await.0, StatusCode::OK);
    let staging = store.app(&"hello-staging".parse().unwrap()).unwrap().expect("staging");
    assert_eq!(
        staging.newest().map(|deploy| deploy.cause.clone()),
        Some(Cause::Rollback { to: ReleaseNumber(1), guard: None })
    );
    let (status, answer) = post(&service, promote, json!({})).await;
    assert_eq!(
        (status, answer["error"].as_str()),
        (StatusCode::CONFLICT, Some("A deploy to staging is under way: ask again when it serves."))
    );

    let audited: Vec<bool> =
        store.orders().unwrap().iter().map(|order| matches!(order.answer, Answer::Refused { .. })).collect();
    assert_eq!(audited, [false, true, true, true, false, true], "an order is missing in the audit log");

    assert_eq!(post(&service, "/api/v1/runs/1/rerun", json!({})).await, (StatusCode::OK, json!({ "run": 3 })));
    assert_eq!(store.run(RunNumber(3)).unwrap().map(|run| run.commit), Some(sha('a')));
    assert_eq!(post(&service, "/api/v1/runs/2/rerun", json!({})).await.0, StatusCode::CONFLICT, "it goes on");
    assert_eq!(post(&service, "/api/v1/runs/2/cancel", json!({})).await.0, StatusCode::OK);
    let cancelled = store.run(RunNumber(2)).unwrap().and_then(|run| run.cancelled);
    assert_eq!(cancelled, Some(Cancelled::By { login: "operator".to_owned() }));
    assert_eq!(store.run(RunNumber(3)).unwrap().and_then(|run| run.cancelled), None, "another run was cancelled");
    assert_eq!(post(&service, "/api/v1/runs/2/cancel", json!({})).await.0, StatusCode::CONFLICT);
    assert_eq!(post(&service, "/api/v1/runs/99/cancel", json!({})).await.0, StatusCode::NOT_FOUND);
}

#[actix_web::test]
async fn the_way_back_leads_to_releases_alone_whose_archives_are_kept() {
    let house = house().await;
    let service = service!(house);
    let gone: SlugDigest = "e".repeat(64).parse().unwrap();
    let many = {
        let gone = gone.clone();
        move |tx: &mut crate::store::Transaction<'_>| {
            for number in 1..=30 {
                let slug = if number < 15 { gone.clone() } else { digest() };
                tx.put_release(&Release { slug, ..release("hello-staging", number, Cause::Push) })?;
            }
            tx.put_app(&app("hello-staging", Stage::Staging, vec![live(1, 1), live(2, 5)], Some(5)))
        }
    };
    house.world().store.transact(many).await.unwrap();
    let page = get(&service, "/apps/hello-staging").await.1;
    let listed = |page: &str| -> Vec<u32> {
        let rows = page.split("id=\"rollback-").skip(1);
        rows.map(|row| row.split('"').next().unwrap().parse().unwrap()).collect()
    };
    assert_eq!(listed(&page), (15..=30).rev().collect::<Vec<_>>());
    assert!(page.contains(">v11<") && !page.contains(">v10<") && page.contains(">v5<"), "{page}");
    assert!(page.contains("landfall releases hello-staging"), "{page}");
    let all = get(&service, "/api/v1/apps/hello-staging/releases").await.1;
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!(all["releases"].as_array().map(Vec::len), Some(30));

    let rollback = "/api/v1/apps/hello-staging/rollback";
    let (status, answer) = post(&service, rollback, json!({ "to": "v14" })).await;
    let said = "There is no such release to go back to.";
    assert_eq!((status, answer["error"].as_str()), (StatusCode::CONFLICT, Some(said)));
    let order = json!({ "command": "/rollback v14 to hello-staging" });
    let (status, answer) = post(&service, "/api/v1/pipelines/acme/hello/orders/command", order).await;
    assert_eq!((status, answer["error"].as_str()), (StatusCode::CONFLICT, Some(said)));
    house.keep_archive(&gone);
    assert_eq!(post(&service, rollback, json!({ "to": "v14" })).await.0, StatusCode::OK);
}

#[actix_web::test]
async fn an_app_is_destroyed_only_by_whoever_says_its_name_twice() {
    let house = house().await;
    let service = service!(house);
    let store = &house.world().store;
    let staging = || store.app(&"hello-staging".parse().unwrap()).unwrap().expect("staging").wanted;
    let path = "/api/v1/apps/hello-staging/destroy";
    for body in [json!({}), json!({ "confirm": true }), json!({ "confirm": "hello-production" })] {
        let (status, answer) = post(&service, path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer["error"].as_str().is_some_and(|said| said.contains("must be hello-staging")), "{answer}");
    }
    assert_eq!((staging(), store.orders().unwrap().len()), (Wanted::Running, 0));

    let lock = Lock { stage: StageKind::Staging, reason: "audit".into(), by: "olivia".into(), at: super::house::START };
    let mut state = store.pipeline(repository().id).unwrap();
    state.locks = vec![lock];
    let locked = state.clone();
    store.transact(move |tx: &mut crate::store::Transaction<'_>| tx.put_pipeline(&locked)).await.unwrap();
    let (status, answer) = post(&service, path, json!({ "confirm": "hello-staging" })).await;
    assert_eq!((status, answer["error"].as_str()), (StatusCode::CONFLICT, Some("Staging is locked by olivia: audit.")));
    assert_eq!(staging(), Wanted::Running);
    state.locks.clear();
    store.transact(move |tx: &mut crate::store::Transaction<'_>| tx.put_pipeline(&state)).await.unwrap();

    let (status, answer) = post(&service, path, json!({ "confirm": "hello-staging" })).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({ "app": "hello-staging", "destroyed": true })));
    assert_eq!(staging(), Wanted::Gone);
    assert!(queue::entry(store, "app:hello-staging").unwrap().is_some(), "nobody would act on it");
    assert_eq!(post(&service, path, json!({ "confirm": "hello-staging" })).await.0, StatusCode::CONFLICT, "it goes");
    let orders = store.orders().unwrap();
    let refused: Vec<bool> = orders.iter().map(|order| matches!(order.answer, Answer::Refused { .. })).collect();
    assert_eq!(refused, [true, false, true]);
    assert!(orders.iter().all(|order| order.by == "operator" && matches!(order.what, OrderKind::Destroy { .. })));
}

#[actix_web::test]
async fn a_restart_is_asked_of_one_app_and_of_what_may_run_again() {
    let house = house().await;
    let service = service!(house);
    let labels = |app| [("app", app), ("release", "v2"), ("type", "web"), ("ordinal", "1"), ("attempt", "1")];
    let own = house.start("hello-staging.v2.web.1.a1", &labels("hello-staging"));
    let other = house.start("hello-production.v2.web.1.a1", &labels("hello-production"));
    let mut migrating = labels("hello-staging");
    migrating[2].1 = "release";
    let release_phase = house.start("hello-staging.v2.release.1.a1", &migrating);
    let (status, answer) = post(&service, "/api/v1/apps/hello-staging/restart", json!({})).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({ "app": "hello-staging", "restarted": ["web.1"] })));
    let states = house.world().platform.list().await.unwrap();
    let stopping = states.iter().filter(|status| matches!(status.state, crate::platform::State::Stopping)).count();
    assert_eq!(stopping, 0, "{own}, {other} and {release_phase} run on until others are there");
    let wish = |app: &str| {
        let app = house.world().store.app(&app.parse().unwrap()).unwrap().expect("an app");
        (app.restart_at.is_some(), app.restart_only, app.maintenance)
    };
    assert_eq!(wish("hello-staging"), (true, None, false));
    let part = json!({ "process": "worker" });
    let (_, answer) = post(&service, "/api/v1/apps/hello-staging/restart", part).await;
    assert_eq!(answer["restarted"], json!([]));
    assert_eq!(wish("hello-staging"), (true, Some("worker".to_owned()), false));
}

#[actix_web::test]
async fn maintenance_is_turned_on_and_off_and_stands_in_the_audit_log_once() {
    let house = house().await;
    let service = service!(house);
    let path = "/api/v1/apps/hello-staging/maintenance";
    let on = || house.world().store.app(&"hello-staging".parse().unwrap()).unwrap().expect("an app").maintenance;
    for wrong in [json!({}), json!({ "on": 1 }), json!({ "on": "yes" })] {
        assert_eq!(post(&service, path, wrong).await.0, StatusCode::BAD_REQUEST);
    }
    assert!(!on());
    for _ in 0..2 {
        let answer = post(&service, path, json!({ "on": true })).await;
        assert_eq!(answer, (StatusCode::OK, json!({ "app": "hello-staging", "maintenance": true })));
        assert!(on());
    }
    assert_eq!(post(&service, path, json!({ "on": "false" })).await.0, StatusCode::OK);
    assert!(!on());
    let orders = house.world().store.orders().unwrap();
    let turns: Vec<bool> = orders
        .iter()
        .filter_map(|order| match order.what {
            OrderKind::Maintenance { on, .. } => Some(on),
            _ => None,
        })
        .collect();
    assert_eq!(turns, [true, false]);
}

#[actix_web::test]
async fn parked_deliveries_run_again_and_applied_ones_do_not() {
    let house = House::hostile().await;
    let service = service!(house);
    let store = &house.world().store;
    let state = |id: &str| store.delivery(id).unwrap().expect("a delivery").delivery.state;
    let place = |wanted: fn(&DeliveryState) -> bool| {
        (0..8).map(|place| format!("delivery-{place}")).find(|id| wanted(&state(id))).expect("one of that state")
    };
    let parked = place(|state| matches!(state, DeliveryState::Parked { .. }));
    let applied = place(|state| matches!(state, DeliveryState::Applied { .. }));
    assert_eq!(
        post(&service, &format!("/api/v1/deliveries/{applied}/replay"), json!({})).await.0,
        StatusCode::CONFLICT
    );
    assert_eq!(post(&service, "/api/v1/deliveries/none/replay", json!({})).await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        post(&service, &format!("/api/v1/deliveries/{parked}/replay"), json!({})).await,
        (StatusCode::OK, json!({ "replayed": [parked] }))
    );
    assert_eq!(state(&parked), DeliveryState::Queued);
    assert!(queue::entry(store, &format!("delivery:{parked}")).unwrap().is_some());

    let (key, generation) = (format!("delivery:{parked}"), store.generation());
    let named = key.clone();
    let park = move |tx: &mut crate::store::Transaction<'_>| {
        let now = super::house::START;
        let claimed = queue::claim(tx, now, std::time::Duration::from_secs(9), generation)?;
        let token = claimed.and_then(|entry| entry.lease).map_or(0, |lease| lease.token);
        queue::park(tx, &key, token, "why")
    };
    assert!(store.transact(park).await.unwrap());
    assert_eq!(
        post(&service, "/api/v1/deliveries/replay", json!({})).await,
        (StatusCode::OK, json!({ "replayed": [named] }))
    );
    assert_eq!(queue::depth(store).unwrap().parked, 0);
}

#[actix_web::test]
async fn a_form_of_a_page_is_answered_with_the_page_that_shows_what_came_of_it() {
    let house = house().await;
    let service = service!(house);
    let response = service(form("/api/v1/apps/hello-staging/rollback", "to=v1")).await;
    assert_eq!(response.status, StatusCode::SEE_OTHER);
    assert_eq!(response.headers.get("location").unwrap(), "/apps/hello-staging");
    let response = service(form("/api/v1/pipelines/acme/hello/promote", "")).await;
    assert_eq!(response.status, StatusCode::CONFLICT);
    let page = String::from_utf8(response.body).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("A deploy to staging is under way"), "{page}");
}

#[actix_web::test]
async fn a_body_that_is_too_large_is_told_as_every_other_mistake_is() {
    let house = house().await;
    let service = service!(house);
    let path = "/api/v1/pipelines/acme/hello/orders/rules";
    let rules = format!("# {}\n", "x".repeat(60 * 1024));
    assert_eq!(post(&service, path, json!({ "rules": rules })).await.0, StatusCode::OK);
    let rules = "x".repeat(256 * 1024);
    let (status, answer) = post(&service, path, json!({ "rules": rules })).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer["error"], "That is too much at once: 256 KiB are taken.");
    let response = service(form(path, format!("rules={rules}"))).await;
    let page = String::from_utf8(response.body).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("256 KiB are taken"), "{page}");
}

#[actix_web::test]
async fn what_staging_serves_since_the_page_was_read_is_not_promoted_in_its_place() {
    let house = house().await;
    let service = service!(house);
    let page = get(&service, "/pipelines/acme/hello").await.1;
    let dialog = page.split("<details class=\"confirm\" id=\"promote\">").nth(1).expect("a dialog");
    let dialog = dialog.split("</details>").next().unwrap();
    assert!(dialog.contains("hello-staging v2") && dialog.contains("name=\"release\" value=\"2\""), "{dialog}");

    let newer = |tx: &mut crate::store::Transaction<'_>| {
        tx.put_app(&app("hello-staging", Stage::Staging, vec![live(2, 2), live(3, 3)], Some(3)))?;
        tx.put_release(&release("hello-staging", 3, Cause::Push))
    };
    house.world().store.transact(newer).await.unwrap();
    let promote = "/api/v1/pipelines/acme/hello/promote";
    let response = service(form(promote, "app=hello-production&release=2")).await;
    let said = String::from_utf8(response.body).unwrap();
    assert_eq!(response.status, StatusCode::CONFLICT);
    assert!(said.contains("Staging serves v3, not v2."), "{said}");
    assert_eq!(post(&service, promote, json!({ "release": "newest" })).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(post(&service, promote, json!({ "release": "v3" })).await.0, StatusCode::OK);
}

#[actix_web::test]
async fn a_stage_s_vars_are_set_and_taken_away_by_its_form_and_never_shown() {
    let house = house().await;
    let service = service!(house);
    let change = |body: &'static str| form("/api/v1/pipelines/acme/hello/config/review/change", body);
    let page = async || get(&service, "/pipelines/acme/hello").await.1;
    assert!(!page().await.contains("SHOP_TOKEN"));
    let response = service(change("name=SHOP_TOKEN&value=hush%0D%0Ahush")).await;
    assert_eq!(response.status, StatusCode::SEE_OTHER);
    assert_eq!(response.headers.get("location").unwrap(), "/pipelines/acme/hello#config");
    let shown = page().await;
    assert!(shown.contains("SHOP_TOKEN") && !shown.contains("hush"), "{shown}");
    assert!(shown.contains("unset-review-1") && !shown.contains("unset-staging-1"), "{shown}");
    let repository = house.world().store.repositories().unwrap().remove(0);
    let scope = ConfigScope::Stage(repository.id, ConfigStage::Review);
    let vars = house.world().store.config(&scope).unwrap().unwrap().vars;
    let ConfigValue::Sealed { sealed, .. } = &vars["SHOP_TOKEN"].value else { panic!("{vars:?}") };
    let chosen = crate::workflow::Chosen { scope, sealed: sealed.clone() };
    let value = crate::reconcile::config::reveal(house.world(), "SHOP_TOKEN", &chosen).unwrap();
    assert_eq!(value.expose(), "hush\nhush", "lines as they were typed");
    assert_eq!(service(change("unset=SHOP_TOKEN")).await.status, StatusCode::SEE_OTHER);
    assert!(!page().await.contains("unset-review-1"));
}

#[actix_web::test]
async fn the_form_of_the_rules_holds_them_as_they_were_written() {
    let house = house().await;
    let service = service!(house);
    let rules = "\n# \"Who\" may, </textarea> & who else\n[pipeline.production]\nright = \"admin\"\napprovals = 1\n";
    let path = "/api/v1/pipelines/acme/hello/orders/rules";
    assert_eq!(post(&service, path, json!({ "rules": rules })).await.0, StatusCode::OK);
    let state = || house.world().store.pipeline(repository().id).unwrap();
    let before = state().policy;
    assert_eq!((before.production.right, before.production.approvals), (Access::Admin, 1));

    let page = get(&service, "/pipelines/acme/hello").await.1;
    let form_of_rules = page.split("<textarea id=\"rules-text\"").nth(1).expect("a form");
    let held = form_of_rules.split("</textarea>").next().and_then(|rest| rest.split_once('>')).expect("a text").1;
    // A browser takes the first line break away, and sends each of the others as two characters.
    let typed = decoded(held.strip_prefix('\n').unwrap_or(held)).replace('\n', "\r\n");
    let encoded: String = typed.bytes().map(|byte| format!("%{byte:02X}")).collect();
    assert_eq!(service(form(path, format!("rules={encoded}"))).await.status, StatusCode::SEE_OTHER);
    assert_eq!(state().dashboard.text, rules);
    assert_eq!(state().policy, before, "what was only looked at is another now");

    let refused = PipelineState { error: Some("line 1\n  | ^ here".to_owned()), read_at: Some(sha('a')), ..state() };
    let put = move |tx: &mut crate::store::Transaction<'_>| tx.put_pipeline(&refused);
    house.world().store.transact(put).await.unwrap();
    let page = get(&service, "/pipelines/acme/hello").await.1;
    assert!(page.contains("\">line 1\n  | ^ here\n</pre>"), "{page}");
}

#[actix_web::test]
async fn everything_goes_down_only_when_it_is_meant() {
    let mut house = house().await;
    let service = service!(house);
    assert_eq!(post(&service, "/api/v1/shutdown", json!({})).await.0, StatusCode::BAD_REQUEST);
    let another = json!({ "apps": true, "data_dir": "/srv/another" });
    let (status, answer) = post(&service, "/api/v1/shutdown", another).await;
    let own = std::path::absolute(&house.world().config.data_dir).unwrap();
    let said = format!("This control plane is that of {}: nothing was ended.", own.display());
    assert_eq!((status, answer["error"].as_str()), (StatusCode::BAD_REQUEST, Some(said.as_str())));
    assert!(house.asked_down.try_recv().is_err());
    for wish in [json!({ "apps": true }), json!({ "apps": true, "data_dir": own })] {
        assert_eq!(post(&service, "/api/v1/shutdown", wish).await.0, StatusCode::ACCEPTED);
    }
    assert!(house.asked_down.try_recv().is_ok());
}

/// Every address that changes something, asked in the ways that a foreign page could: nothing is written.
#[actix_web::test]
async fn no_foreign_page_gives_orders() {
    let house = house().await;
    let service = service!(house);
    let description: Value = serde_json::from_str(include_str!("../../../templates/openapi.json")).unwrap();
    let orders: Vec<String> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, operations)| operations.get("post").is_some())
        .map(|(path, _)| {
            path.replace("{owner}/{name}", "acme/hello")
                .replace("{name}", "hello-staging")
                .replace("{stage}", "review")
                .replace("{number}", "2")
                .replace("{id}", "x")
        })
        .collect();
    assert!(orders.len() >= 8, "{orders:?}");
    let form = ("content-type", "application/x-www-form-urlencoded");
    let json_type = ("content-type", "application/json");
    let host = ("host", "localhost:8080");
    let kinds: [&[(&str, &str)]; 8] = [
        &[host, form, ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")],
        &[host, form, ("origin", "http://hello-pr-1.localhost:8000"), ("sec-fetch-site", "same-site")],
        &[host, form, ("origin", "null")],
        &[host, form],
        &[host, json_type, ("origin", "https://evil.example")],
        &[host, ("content-type", "text/plain"), ("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")],
        &[("host", "evil.example"), json_type],
        &[host, json_type, ("sec-fetch-site", "none")],
    ];
    let before = house.world().store.figures().transactions;
    for path in &orders {
        for kind in kinds {
            let mut request = TestRequest::post().uri(path);
            for (name, value) in kind {
                request = request.insert_header((*name, *value));
            }
            let response = service(request.set_payload("{\"apps\":true}")).await;
            assert_eq!(response.status, StatusCode::FORBIDDEN, "{path} {kind:?}");
        }
        let status = service(TestRequest::get().uri(path).insert_header(host)).await.status;
        assert!(matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED), "GET {path}: {status}");
    }
    assert_eq!(house.world().store.figures().transactions, before);
}
