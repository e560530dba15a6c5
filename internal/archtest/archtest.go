// Package archtest holds the product's architecture in place: its tests fail when a package
// imports what docs/architecture.md says it must not, or when a tracked file names what must
// not be named. The rules are in rules.go, each with its reason.
package archtest
