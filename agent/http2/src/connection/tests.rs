//! Frame by frame: what a connection reports and answers.

mod abuse;
mod chaos;
mod control;
mod data;
mod heads;
mod moving;
mod split;
mod states;
mod wire;
