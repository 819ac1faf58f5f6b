//! The mark of the agent's connections to applications. Packet rules keep connections with a bit of their own apart from
//! those of the clients, whose addresses they borrow. Whether a pod's rules know the bit is read from them: rules of an
//! earlier version, or of another node role, do not, and the connections that such rules have seen must go on as they are
//! when newer ones replace them.

use isthmus_model::LOCAL_MARK;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{self, Op, Rule, Ruleset, Statement};

/// The mark, if it is another than that of all sockets in the pod.
pub(crate) fn application_mark(netns: &Netns, mark: u32) -> Option<u32> {
    match nft::dump(netns) {
        Ok(found) => keeps_apart(&found).then_some(mark | LOCAL_MARK),
        Err(error) => {
            tracing::debug!(%error, "packet rules not read, connections to applications get the common mark");
            None
        }
    }
}

fn keeps_apart(ruleset: &Ruleset) -> bool {
    let chains = ruleset.tables.iter().flat_map(|table| &table.chains);
    chains.flat_map(|chain| &chain.rules).any(is_zone_of_applications)
}

fn is_zone_of_applications(rule: &Rule) -> bool {
    let has = |wanted: fn(&Statement) -> bool| rule.statements.iter().any(wanted);
    has(|it| matches!(it, Statement::Mark { mask, op: Op::Eq, value } if mask & value & LOCAL_MARK != 0))
        && has(|it| matches!(it, Statement::SetCtOriginalZone(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_with_a_zone_for_the_bit_keep_connections_apart() {
        let mark = |mask, value| Statement::Mark { mask, op: Op::Eq, value };
        let zone = Statement::SetCtOriginalZone(2);
        let rows = [
            (vec![mark(0x1fff, 0x1539), zone.clone()], true),
            (vec![mark(0xfff, 0x539), zone], false),
            (vec![mark(0x1fff, 0x1539), Statement::Counter], false),
        ];
        for (statements, want) in rows {
            assert_eq!(is_zone_of_applications(&Rule::new(statements.clone())), want, "{statements:?}");
        }
    }
}
