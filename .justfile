# Every-day commands: `just`, or read the recipe and type it. `just` itself is optional: nothing else here needs it.

# list the recipes
default:
    @just --list

# what every change must pass (minutes)
ci:
    bash .ci/run

fmt:
    cargo fmt --all

lint *args:
    cargo clippy --workspace --all-targets --locked {{ args }} -- --deny warnings

test *args:
    cargo test --workspace {{ args }}

# tests of one crate: `just test-crate isthmus-hbone pool`
test-crate crate *args:
    cargo test -p {{ crate }} {{ args }}

# tests with real processes, namespaces and packet rules: `just e2e leak` for one of them
e2e test="*":
    cargo test -p isthmus-e2e --test '{{ test }}'

# one benchmark: `just bench hop -- latency`; benches/README.md says what each measures
bench name *args:
    cargo bench -p isthmus-benches --bench {{ name }} {{ args }}

# every fuzz harness for some minutes: `just fuzz 240`; after a change to a parser
fuzz seconds="240":
    BOLERO_RANDOM_TEST_TIME_MS={{ seconds }}000 BOLERO_RANDOM_ITERATIONS=1000000000 cargo test -p isthmus-fuzz
    BOLERO_RANDOM_TEST_TIME_MS={{ seconds }}000 BOLERO_RANDOM_ITERATIONS=1000000000 cargo test -p isthmus-dns -p isthmus-cni -p isthmus-record fuzz

# licences, bans, sources and advisories of the dependencies
deny *checks:
    .ci/deny {{ checks }}

# with private items: `just doc --open`
doc *args:
    RUSTDOCFLAGS="--document-private-items --deny warnings" cargo doc --workspace --no-deps --locked {{ args }}

# every crate compiled alone: `just check-each isthmus-rt` for one
check-each *packages:
    .ci/check-each {{ packages }}

# two clusters on this machine: `just playground up`, `just playground scenario --list`
playground *args:
    cargo run --release -p playground -- {{ args }}
