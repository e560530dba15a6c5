// Package enroltest has both ends of issue 4 in one process: the service provider's centre (package sp)
// over TLS on loopback, on SQLite and on PostgreSQL, and the device's agent (package router/centre) with
// a token, a journal and a verified policy. It holds tests alone.
//
// Time is a clock that stands still until a test moves it, and both ends read it. Nothing is concluded
// from how long something takes.
package enroltest
