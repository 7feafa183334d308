//! 5,000 campaigns out of word lists, the same on every machine.

/// How many campaigns there are.
pub(crate) const CAMPAIGNS: i64 = 5_000;

const SEED: u64 = 20_240_229;
const MAKERS: [&str; 20] = [
    "Amara", "Bjorn", "Chidi", "Dalia", "Emeka", "Farida", "Goran", "Hanako", "Imre", "Jovana",
    "Kofi", "Leila", "Mateo", "Noor", "Olga", "Pavel", "Quinn", "Rosa", "Samir", "Tuija",
];
const THINGS: [(&str, &str); 24] = [
    ("well", "water"),
    ("cistern", "water"),
    ("filter", "water"),
    ("pump", "water"),
    ("library", "education"),
    ("classroom", "education"),
    ("scholarship", "education"),
    ("laboratory", "education"),
    ("clinic", "health"),
    ("ambulance", "health"),
    ("vaccine", "health"),
    ("wheelchair", "health"),
    ("orchard", "food"),
    ("bakery", "food"),
    ("greenhouse", "food"),
    ("beehive", "food"),
    ("windmill", "energy"),
    ("battery", "energy"),
    ("lantern", "energy"),
    ("turbine", "energy"),
    ("theatre", "art"),
    ("mural", "art"),
    ("choir", "art"),
    ("printshop", "art"),
];
const KINDS: [&str; 16] = [
    "solar",
    "mobile",
    "village",
    "floating",
    "shared",
    "silent",
    "open",
    "wooden",
    "winter",
    "coastal",
    "mountain",
    "folding",
    "tiny",
    "travelling",
    "rooftop",
    "bamboo",
];
const PLACES: [&str; 18] = [
    "Aswan", "Bergen", "Cusco", "Dakar", "Esbjerg", "Fez", "Galway", "Hanoi", "Izmir", "Jaffna",
    "Kigali", "Lima", "Mombasa", "Nuuk", "Osaka", "Porto", "Quito", "Riga",
];
const REASONS: [&str; 12] = [
    "the old one broke in the storm",
    "children walk two hours for it today",
    "the harvest depends on it",
    "nobody should have to wait for it",
    "neighbours already gave the land",
    "the first forty volunteers have signed",
    "it will pay for itself in three years",
    "the school has promised to look after it",
    "every coin is doubled by the council",
    "last year's pilot worked",
    "it is the last of its kind",
    "it keeps a craft alive",
];

/// One campaign as it is before anyone gave.
#[derive(Debug)]
pub(crate) struct Seed {
    pub(crate) id: i64,
    pub(crate) title: String,
    pub(crate) story: String,
    pub(crate) category: &'static str,
    pub(crate) goal_cents: i64,
}

/// All campaigns, in the order of their ids from 1.
pub(crate) fn campaigns() -> impl Iterator<Item = Seed> {
    let mut rng = fastrand::Rng::with_seed(SEED);
    (1..=CAMPAIGNS).map(move |id| {
        let mut pick = |words: &[&'static str]| words[rng.usize(..words.len())];
        let (maker, kind, place, reason) =
            (pick(&MAKERS), pick(&KINDS), pick(&PLACES), pick(&REASONS));
        let (thing, category) = THINGS[rng.usize(..THINGS.len())];
        Seed {
            id,
            title: format!("A {kind} {thing} for {place}"),
            story: format!("{maker} wants to build a {kind} {thing} in {place}, because {reason}."),
            category,
            goal_cents: rng.i64(50..5_000) * 1_000,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_gets_the_same_campaigns() {
        let all: Vec<_> = campaigns().collect();
        assert_eq!(all.len() as i64, CAMPAIGNS);
        let again: Vec<_> = campaigns().map(|seed| seed.story).collect();
        assert!(all.iter().zip(&again).all(|(seed, story)| seed.story == *story));
        assert_eq!(all[0].title, "A travelling library for Mombasa");
    }
}
