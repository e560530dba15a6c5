// Package sp is the service provider's centre: it wires registry, database, service CAs, enrolment and
// policies together, and serves devices over the network. cmd/wardgate-sp is its command line.
//
// A Centre is stateless apart from its database: any number of instances may share one. What a
// change of the registry makes necessary is queued in the same transaction as the change itself,
// and whichever instance claims the work does it:
//
//	Apply ──▶ registry + jobs ──▶ claim ──▶ compile, sign ──▶ policy + job done ──▶ long polls end
//	          (one transaction)                               (one transaction)
//
// So a crash at any instant loses nothing: work that was claimed and not finished is claimed again
// when its lease ends, and a policy is stored once, with a serial number above all before it.
package sp
