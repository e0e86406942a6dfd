// Package pipeline is what naru does: it holds the words (App, Release,
// Replica, …), the steps of a deployment, and the engine that runs, journals,
// resumes and undoes them. It needs the standard library only; the rooms that
// fetch, build, run and route implement its small interfaces.
//
// One deployment:
//
//	fetch     Source brings the branch here and says which commit is its tip
//	build     Builder makes the image of that commit
//	release   the immutable record is written, with a number
//	command   the release command runs once, in the new image
//	web.1.*   for each batch of each process: start new replicas, probe them
//	          until ready, route to them, drain the old ones, stop those
//	prove     a real request through the router was answered by the release
//	bake      the replicas stay healthy for the bake time
//	settle    the release is marked live, what no kept release needs goes
//
// The list is made by Plan from the config and from what ran at the start, and
// nothing else, so that a second agent makes the same list after the first was
// killed. Engine.Run writes Started before a step's Do and Done after it. A
// step's Do may run twice. When a Do fails, the Undo of that step and of every
// step before it run backwards, journaled alike, so that undoing also goes on
// after a kill. No old replica is stopped before the new one that takes its
// place was proven ready and routed, unless the policy says unavailable.
//
// DESIGN.md in this folder has the table of what a crash leaves after each step.
package pipeline
