//! Teachers that workers label for, over a server: what takes their place in the pipeline.

use crate::configuration::{Configuration, Teacher};
use crate::failure::Failure;
use crate::inputs::{Inputs, LoadedTeacher};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use teacher::Labeller;
use teacher::remote::{Coordinator, RunSpec, TeacherSpec, WorkerOptions};
use trainer::TrainerError;

/// What is labelled over the server.
#[derive(Default)]
pub struct Elsewhere {
    /// The run's place on the server.
    pub coordinator: Option<Coordinator>,
    /// Teachers whose batches go to whoever has time.
    pub teachers: Vec<Arc<dyn Labeller>>,
    /// Workers of this process, with what they label with.
    pub workers: Vec<(WorkerOptions, Arc<dyn Labeller>)>,
}

impl Elsewhere {
    /// The run's place on the server, if workers label for any of its teachers. Of those `here` that others label for too, workers of this process take
    /// care.
    pub fn open(
        configuration: &Configuration,
        inputs: &Inputs,
        registry: &Registry,
        here: &mut BTreeMap<u16, Arc<dyn Labeller>>,
    ) -> Result<Elsewhere, Failure> {
        let is_elsewhere = |section: &Teacher| section.labels && section.labelled_by.is_elsewhere();
        let known: Vec<(u16, &LoadedTeacher)> =
            (0..).zip(&inputs.teachers).filter(|(_, teacher)| is_elsewhere(&teacher.section)).collect();
        let Some(cluster) = configuration.cluster.as_ref().filter(|_| !known.is_empty()) else {
            return Ok(Elsewhere::default());
        };
        let spec = |(index, teacher): &(u16, &LoadedTeacher)| TeacherSpec {
            name: teacher.section.name.clone(),
            index: *index,
            weights: teacher.weights_fingerprint.clone(),
            tokenizer: teacher.tokenizer.fingerprint().to_owned(),
            top_k: configuration.store.top_k,
            tail_samples: configuration.store.tail_samples,
            seed: configuration.run.seed,
        };
        let run = RunSpec::new(known.iter().map(spec).collect());
        let coordinator = Coordinator::open(cluster.link(), run, cluster.attempts as u32, registry)?;
        let (mut teachers, mut workers) = (Vec::new(), Vec::new());
        for known in &known {
            let section = &known.1.section;
            let shape = model::Configuration::load(&section.path).map_err(TrainerError::from)?;
            let own = here.remove(&known.0);
            workers.extend(own.clone().map(|labeller| {
                let options = WorkerOptions {
                    link: cluster.link(),
                    teacher: section.name.clone(),
                    name: format!("daemon/{}", section.name),
                    device: section.place.to_string(),
                };
                (options, labeller)
            }));
            let teacher = coordinator.teacher(spec(known), shape, cluster.in_flight, own);
            teachers.push(Arc::new(teacher) as Arc<dyn Labeller>);
        }
        Ok(Elsewhere { coordinator: Some(coordinator), teachers, workers })
    }
}
