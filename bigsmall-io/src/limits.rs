//! Limits that are the same for every job, and how the user lifts them.

/// What an error about such a limit says of it.
pub(crate) const RAISE: &str = "(BIGSMALL_RAISE_LIMITS=2 doubles it)";

/// The limit `limit`, as many times as the user says in the environment.
pub(crate) fn raised(limit: u64) -> u64 {
    times(limit, std::env::var("BIGSMALL_RAISE_LIMITS").ok().as_deref())
}

fn times(limit: u64, said: Option<&str>) -> u64 {
    let factor = said.and_then(|said| said.trim().parse().ok()).unwrap_or(1);
    limit.saturating_mul(u64::max(1, factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_can_be_raised_and_not_lowered() {
        let said = [None, Some("3"), Some(" 2\n"), Some("0"), Some("x"), Some("-1")];
        assert_eq!(said.map(|said| times(5, said)), [5, 15, 10, 5, 5, 5]);
        assert_eq!(times(5, Some("18446744073709551615")), u64::MAX);
    }
}
