//! The mesh's trust domain and its aliases. An identity in one of these domains is the same identity in all of them.

use crate::identity::{SpiffeId, TrustDomain};

/// A trust domain with its aliases.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrustDomains {
    mesh: Option<TrustDomain>,
    aliases: Vec<TrustDomain>,
}

impl TrustDomains {
    /// The configured trust domain, if any, and its aliases. Without one, the domain of the local identity counts as the
    /// mesh's.
    #[must_use]
    pub fn new(mesh: Option<TrustDomain>, aliases: impl IntoIterator<Item = TrustDomain>) -> Self {
        let mut aliases: Vec<TrustDomain> = aliases.into_iter().collect();
        aliases.sort();
        aliases.dedup();
        Self { mesh, aliases }
    }

    /// The configured domain of the mesh.
    #[must_use]
    pub fn mesh(&self) -> Option<&TrustDomain> {
        self.mesh.as_ref()
    }

    /// The aliases, sorted.
    #[must_use]
    pub fn aliases(&self) -> &[TrustDomain] {
        &self.aliases
    }

    /// Whether `own` and `other` name the same mesh.
    #[must_use]
    pub fn same(&self, own: &TrustDomain, other: &TrustDomain) -> bool {
        own == other || (self.applies_to(own) && self.lists(other))
    }

    /// Whether two identities are equivalent, seen from trust domain `own`.
    #[must_use]
    pub fn same_identity(&self, own: &TrustDomain, a: &SpiffeId, b: &SpiffeId) -> bool {
        a.namespace == b.namespace
            && a.service_account == b.service_account
            && (a.trust_domain == b.trust_domain
                || (self.same(own, &a.trust_domain) && self.same(own, &b.trust_domain)))
    }

    /// The equivalent identities in the other domains, seen from trust domain `own`; none for an identity of another mesh.
    pub fn other_names<'a>(
        &'a self,
        own: &'a TrustDomain,
        id: &'a SpiffeId,
    ) -> impl Iterator<Item = SpiffeId> + 'a {
        let ours = !self.aliases.is_empty() && self.same(own, &id.trust_domain);
        let all = self.mesh.iter().chain(&self.aliases).chain(std::iter::once(own));
        let names = all.filter(move |name| ours && **name != id.trust_domain && self.same(own, name));
        names.map(|name| SpiffeId { trust_domain: name.clone(), ..id.clone() })
    }

    /// Aliases belong to the configured domain: an agent in another domain has none.
    fn applies_to(&self, own: &TrustDomain) -> bool {
        self.mesh.is_none() || self.lists(own)
    }

    fn lists(&self, domain: &TrustDomain) -> bool {
        self.mesh.as_ref() == Some(domain) || self.aliases.contains(domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn td(text: &str) -> TrustDomain {
        text.into()
    }

    fn id(domain: &str) -> SpiffeId {
        format!("spiffe://{domain}/ns/n/sa/a").parse().unwrap()
    }

    #[test]
    fn the_mesh_domain_and_its_aliases_are_equivalent() {
        let domains = TrustDomains::new(Some(td("new")), [td("old"), td("older"), td("old")]);
        assert_eq!(
            (domains.mesh(), domains.aliases()),
            (Some(&td("new")), [td("old"), td("older")].as_slice())
        );
        for (own, other, same) in [
            ("new", "old", true),
            // Half way through a migration some certificates are still of the old domain.
            ("old", "new", true),
            ("old", "older", true),
            ("new", "new", true),
            ("new", "foreign", false),
            ("foreign", "old", false),
            ("foreign", "foreign", true),
        ] {
            assert_eq!(domains.same(&td(own), &td(other)), same, "{own} {other}");
        }
        assert!(domains.same_identity(&td("new"), &id("old"), &id("older")));
        assert!(!domains.same_identity(&td("new"), &id("old"), &id("foreign")));
        assert!(domains.same_identity(&td("new"), &id("foreign"), &id("foreign")), "it is itself");
        let other: SpiffeId = "spiffe://old/ns/n/sa/b".parse().unwrap();
        assert!(!domains.same_identity(&td("new"), &id("new"), &other));
        let names: Vec<_> = domains.other_names(&td("new"), &id("old")).map(|id| id.to_string()).collect();
        assert_eq!(names[0], id("new").to_string());
        assert!(names.contains(&id("older").to_string()) && !names.contains(&id("old").to_string()));
        assert_eq!(domains.other_names(&td("new"), &id("foreign")).count(), 0);
    }

    #[test]
    fn without_a_configured_domain_the_own_one_has_the_aliases() {
        let domains = TrustDomains::new(None, [td("old")]);
        assert_eq!(domains.mesh(), None);
        assert!(domains.same(&td("whatever"), &td("old")));
        assert!(!domains.same(&td("whatever"), &td("else")));
        let names: Vec<_> = domains.other_names(&td("td"), &id("old")).collect();
        assert_eq!(names, [id("td")]);
        assert_eq!(TrustDomains::default().other_names(&td("td"), &id("td")).count(), 0);
    }
}
