//! What the log line of a dry-run policy says.

use isthmus_kit::logs::LogCapture;
use isthmus_model::policy::{Match, StringMatch};
use isthmus_model::{Action, Facts, Policy, Scope, Workload};
use isthmus_state::{Batch, Options, State, authorize};

const WEB: &str = "td/ns/shop/sa/web";
const API: &str = "td/ns/shop/sa/api";

fn policy(name: &str, action: Action, principal: &str) -> Policy {
    let clause = Match { principals: vec![StringMatch::Exact(principal.into())], ..Match::default() };
    let (name, namespace, rules) = (name.into(), "ns".into(), vec![vec![vec![clause]]]);
    Policy { name, namespace, scope: Scope::Namespace, action, rules, dry_run: false }
}

#[test]
fn dry_run_policies_are_logged_with_the_verdict_they_would_give() {
    use Action::{Allow, Deny};
    type Case = (Vec<Policy>, Action, &'static str, bool, &'static str);
    let cases: [Case; 11] = [
        (vec![], Deny, WEB, true, "deny"),
        (vec![], Deny, API, true, "allow"),
        (vec![policy("d", Deny, WEB)], Deny, API, false, "deny"),
        (vec![policy("a", Allow, WEB)], Deny, WEB, true, "deny"),
        (vec![policy("a", Allow, WEB)], Deny, API, true, "allow"),
        (vec![policy("a", Allow, API)], Deny, API, false, "deny"),
        (vec![], Allow, WEB, true, "allow"),
        (vec![], Allow, API, true, "deny"),
        (vec![policy("a", Allow, WEB)], Allow, API, true, "allow"),
        (vec![policy("a", Allow, API)], Allow, WEB, false, "allow"),
        (vec![policy("d", Deny, WEB)], Allow, WEB, false, "deny"),
    ];
    let log = LogCapture::start(|_| true);
    let workload = Workload { namespace: "ns".into(), ..Workload::default() };
    let facts = Facts {
        peer: Some(format!("spiffe://{WEB}").parse().unwrap()),
        source: [10, 0, 0, 9].into(),
        destination: ([10, 0, 0, 1], 8080).into(),
    };
    for (loud, (enforced, action, principal, passes, verdict)) in [true, false].into_iter().cycle().zip(cases)
    {
        let dry = Policy { dry_run: true, ..policy("dry", action, principal) };
        let case = format!("{action:?} of {principal} beside {enforced:?}");
        let state = State::new(Options { log_dry_run_at_info: loud, ..Options::default() });
        let all = [vec![dry], enforced].concat();
        let upsert_policies = all.into_iter().map(|policy| (policy.key(), policy)).collect();
        state.apply(Batch { upsert_policies, ..Batch::default() });
        log.take();
        let passed = authorize(&state.load(), &workload, &facts).is_ok();
        assert_eq!(passed, passes, "{case}: it is not enforced");
        let said = log.take();
        let [line] = said.as_slice() else { panic!("{case}: {said:?}") };
        for field in [
            format!("{} ", if loud { "INFO" } else { "DEBUG" }),
            "policy=ns/dry".to_owned(),
            format!("action={action:?}"),
            format!("matched={}", principal == WEB),
            format!("verdict={verdict:?}"),
            format!("identity=spiffe://{WEB}"),
            "source=10.0.0.9".to_owned(),
            "destination=10.0.0.1:8080".to_owned(),
        ] {
            assert!(line.contains(&field), "{case}: no {field} in {line:?}");
        }
    }
}
