//! Real files of real runners, and files that mean harm.

use super::*;

fn fixture(name: &str) -> Report {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/junit").join(name);
    read(&std::fs::read(path).unwrap())
}

fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
    Counts { passed, failed, skipped }
}

fn places(report: &Report) -> Vec<(&str, Option<&str>, Option<u32>)> {
    report.failures.iter().map(|failure| (failure.name.as_str(), failure.file.as_deref(), failure.line)).collect()
}

#[test]
fn pytest_in_both_of_its_families() {
    for name in ["pytest-xunit1.xml", "pytest-xunit2.xml"] {
        let report = fixture(name);
        assert_eq!(report.counts, counts(4, 4, 2), "{name}");
        assert_eq!(report.problems, [], "{name}");
        assert_eq!(
            places(&report),
            [
                ("test_a.TestX test_bad", Some("test_a.py"), Some(4)),
                ("test_a test_err", Some("test_a.py"), Some(12)),
                ("test_a test_td", Some("test_a.py"), Some(18)),
                ("test_a test_td", Some("test_a.py"), Some(17)),
            ],
            "{name}"
        );
        assert!(
            report.failures[0].message.starts_with("assert 1 == 2")
                || report.failures[0].message.contains("E   assert 1 == 2")
        );
        assert!(report.cases.iter().any(|case| case.name == "test_p[<&>\"']"), "{:?}", report.cases);
    }
    assert_eq!(fixture("pytest-xunit1.xml").cases[0].file.as_deref(), Some("test_a.py"));
}

#[test]
fn jest_rspec_vitest_gotestsum() {
    let jest = fixture("jest-junit.xml");
    assert_eq!((jest.counts, jest.problems.len()), (counts(2, 1, 1), 0));
    assert_eq!(places(&jest), [("outer inner <x> bad", Some("__tests__/a.test.js"), Some(1))]);

    let rspec = fixture("rspec.xml");
    assert_eq!((rspec.counts, rspec.problems.len()), (counts(1, 1, 2), 0));
    assert_eq!(places(&rspec), [("rb.a_spec Thing bad", Some("rb/a_spec.rb"), Some(3))]);
    assert_eq!(rspec.cases[0].seconds, Some(0.000_789));

    let vitest = fixture("vitest.xml");
    assert_eq!((vitest.counts, vitest.problems.len()), (counts(2, 1, 1), 0));
    assert_eq!(places(&vitest), [("vt/a.test.mjs d > bad", Some("vt/a.test.mjs"), Some(1))]);

    let go = fixture("gotestsum.xml");
    assert_eq!((go.counts, go.problems.len()), (counts(2, 2, 1), 0));
    assert_eq!(places(&go)[0], ("x TestSub/bad", Some("a_test.go"), Some(4)));
}

#[test]
fn nextest_tells_a_flaky_test_from_one_that_failed_each_time() {
    let report = fixture("nextest.xml");
    assert_eq!((report.counts, report.flaky), (counts(2, 1, 0), 1));
    assert_eq!(report.problems, []);
    assert_eq!(report.cases[0].result, CaseResult::Flaky);
    assert_eq!(places(&report), [("nx t::bad", Some("src/lib.rs"), Some(1))]);
}

#[test]
fn what_gotestsum_ran_again_counts_once() {
    let xml = br#"<testsuites tests="5" failures="3"><testsuite name="x" tests="5" failures="3">
        <properties><property name="go.version" value="go1.25"/></properties>
        <testcase classname="x" name="TestFlaky"><failure message="Failed">a_test.go:4: no</failure></testcase>
        <testcase classname="x" name="TestBad"><failure message="Failed">a_test.go:9: no</failure></testcase>
        <testcase classname="x" name="TestBad"><failure message="Failed">a_test.go:9: no</failure></testcase>
        <testcase classname="x" name="TestOk"/><testcase classname="x" name="TestFlaky"/></testsuite></testsuites>"#;
    let report = read(xml);
    assert_eq!((report.counts, report.flaky), (counts(2, 1, 0), 1));
    assert_eq!(places(&report), [("x TestBad", Some("a_test.go"), Some(9))]);
    // Jest and RSpec may give two tests one name: there, each counts.
    let plain = String::from_utf8_lossy(xml).replace("go.version", "seed");
    assert_eq!(read(plain.as_bytes()).counts, counts(2, 3, 0));
}

#[test]
fn surefire_with_its_numbers_and_reruns_and_phpunit_with_suites_in_suites() {
    let surefire = read(
        br#"<testsuite name="a.B" time="1,200.5" tests="4" errors="0" skipped="0" failures="1">
        <testcase name="slow" classname="a.B" time="1,200.5"/><testcase name="nan" classname="a.B" time="NaN"/>
        <testcase name="shaky" classname="a.B" time="0.1"><flakyFailure message="once" type="X">at a.B</flakyFailure></testcase>
        <testcase name="bad" classname="a.B" time="0,25"><failure type="java.lang.AssertionError"><![CDATA[at a.B.bad(B.java:7)]]></failure><rerunFailure message="again"/></testcase></testsuite>"#,
    );
    assert_eq!((surefire.counts, surefire.flaky), (counts(3, 1, 0), 1));
    assert_eq!(surefire.problems, []);
    let times: Vec<Option<f64>> = surefire.cases.iter().map(|case| case.seconds).collect();
    assert_eq!(times, [Some(1_200.5), None, Some(0.1), Some(0.25)]);
    assert_eq!(places(&surefire)[0].2, Some(7));

    let phpunit = read(
        br#"<testsuites><testsuite name="" tests="2" failures="1" errors="0"><testsuite name="unit" tests="2" failures="1">
        <testsuite name="ATest" file="/app/tests/ATest.php" tests="2" failures="1"><testcase name="testA" class="ATest" file="/app/tests/ATest.php" line="9" time="0.01"/>
        <testcase name="testB" class="ATest" classname="ATest" line="14"><failure type="E">ATest::testB
Failed asserting that false is true.

/app/tests/ATest.php:16</failure></testcase></testsuite></testsuite></testsuite></testsuites>"#,
    );
    assert_eq!((phpunit.counts, phpunit.problems.len()), (counts(1, 1, 0), 0));
    assert_eq!(phpunit.declared, Some(Declared { tests: 2, failed: 1 }));
    assert_eq!(places(&phpunit), [("ATest testB", Some("tests/ATest.php"), Some(16))]);
}

#[test]
fn numbers_as_runners_write_them() {
    for (text, wanted) in [
        ("1,200.5", Some(1_200.5)),
        ("1,200", Some(1_200.0)),
        ("12,345,678", Some(12_345_678.0)),
        ("0,123", Some(0.123)),
        ("1,25", Some(1.25)),
        (" 2s ", Some(2.0)),
        ("1e-3", Some(0.001)),
        ("NaN", None),
        ("inf", None),
        ("-1", None),
        ("", None),
        ("soon", None),
        ("1e300", None),
    ] {
        assert_eq!(seconds(text), wanted, "{text}");
    }
}

#[test]
fn a_report_without_tests_or_cut_off_never_speaks_for_a_pass() {
    // RSpec on a load error.
    let load_error = read(br#"<?xml version="1.0"?><testsuite name="rspec" tests="0" skipped="0" failures="0" errors="0" time="0.0"></testsuite>"#);
    assert_eq!(load_error.counts, counts(0, 0, 0));
    assert!(!load_error.is_green());
    let outside = read(br#"<testsuite name="rspec" tests="0" failures="0" errors="1"></testsuite>"#);
    assert_eq!(outside.problems, [Problem::HiddenFailures { declared: 1, shown: 0 }]);

    assert_eq!(fixture("empty.xml").problems, [Problem::NotJunit]);
    let truncated = fixture("truncated.xml");
    assert_eq!(truncated.problems, [Problem::Truncated]);
    assert_eq!(truncated.counts, counts(1, 0, 0));
    assert!(!truncated.is_green());
    assert_eq!(read(b"All tests passed").problems, [Problem::NotJunit]);
    assert_eq!(read(b"<html><body>502</body></html>").problems, [Problem::NotJunit]);
    let green = read(br#"<testsuite name="a" tests="1"><testcase name="x"/></testsuite>"#);
    assert!(green.is_green());
}

#[test]
fn every_cut_of_a_real_file_is_read_without_a_pass() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/junit/vitest.xml");
    let whole = std::fs::read(path).unwrap();
    let whole = whole.trim_ascii_end();
    for cut in 0..whole.len() {
        let report = read(&whole[..cut]);
        assert!(!report.is_green(), "cut at {cut}");
        assert!(!report.problems.is_empty(), "cut at {cut}: {report:?}");
    }
    assert_eq!(read(whole).problems, []);
}

#[test]
fn a_failure_outside_of_all_tests_is_one() {
    let report = read(br#"<testsuites><testsuite name="a.test.js" file="a.test.js"><error message="cannot find module">at a.test.js:3</error><testcase name="x"/></testsuite></testsuites>"#);
    assert_eq!(report.counts, counts(1, 1, 0));
    assert_eq!(places(&report), [("a.test.js", Some("a.test.js"), Some(3))]);
    let by_word = read(br#"<testsuite><testcase name="x" status="failed"/><testcase name="y" status="run" result="completed"/><testcase name="z" status="notrun"/></testsuite>"#);
    assert_eq!(by_word.counts, counts(1, 1, 1));
}

#[test]
fn colours_and_control_characters_are_taken_out() {
    let report = read(b"<testsuite><testcase name='a\x1b[31mb'><failure message='&#27;[1mred&#x1b;[0m #x1B[32mgreen'>\x00\x1b[2Jx</failure></testcase></testsuite>");
    assert_eq!(report.failures[0].name, "ab");
    assert_eq!(report.failures[0].message, "red green\nx");
    let wide: Vec<u8> =
        "\u{feff}<testsuite><testcase name='é'/></testsuite>".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(read(&wide).cases[0].name, "é");
    assert_eq!(read(b"<testsuite><testcase name='a & b'/></testsuite>").cases[0].name, "a & b");
}

#[test]
fn files_that_mean_harm_stay_small() {
    let bomb = br#"<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]>
        <testsuite><testcase name="&b;"><failure>&b;&b;&c;</failure></testcase></testsuite>"#;
    let report = read(bomb);
    assert_eq!(report.counts.failed, 1);
    assert_eq!(report.failures[0].name, "&b;");
    assert_eq!(report.failures[0].message, "&b;&b;&c;");

    let deep = format!("<testsuites>{}{}", "<testsuite>".repeat(200_000), "<testcase name='x'/>");
    let report = read(deep.as_bytes());
    assert!(report.problems.contains(&Problem::TooDeep) && !report.is_green());

    let huge = format!(
        "<testsuite><testcase name='{}'><failure message='{}'>{}</failure></testcase></testsuite>",
        "n".repeat(2 << 20),
        "m".repeat(2 << 20),
        "t".repeat(2 << 20)
    );
    let report = read(huge.as_bytes());
    assert!(report.failures[0].name.len() <= NAME_BYTES && report.failures[0].message.len() <= MESSAGE_CHARACTERS);

    let many = format!("<testsuite>{}</testsuite>", "<testcase name='x'><failure/></testcase>".repeat(150_000));
    let report = read(many.as_bytes());
    assert_eq!((report.counts.failed, report.cases.len(), report.failures.len()), (150_000, MOST_CASES, MOST_FAILURES));

    let wide = format!("<testsuite><testcase {} name='late'/></testsuite>", "a='1' ".repeat(100_000));
    assert_eq!(read(wide.as_bytes()).total(), 1);
    assert!(read(&vec![b'<'; 1 << 20]).problems.contains(&Problem::NotJunit));
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 42u64;
    let pieces = [
        "<testsuite",
        "<testcase ",
        " name='",
        "'>",
        "</testcase>",
        "<failure>",
        "&#",
        "&lt;",
        ";",
        "\u{1b}[",
        "]]>",
        "<![CDATA[",
        "<!--",
        "é",
        "\0",
        "#x1B",
        ">",
        "a.py:3",
    ];
    for _ in 0..3_000 {
        let mut text = String::new();
        for _ in 0..40 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        let report = read(text.as_bytes());
        assert!(report.total() < 100);
    }
}
