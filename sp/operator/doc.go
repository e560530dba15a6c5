// Package operator is the service provider's own way into its centre: an HTTP API for the people and
// programs that run it, and the client of that API. docs/sp-api.md describes it for people, openapi.json
// (which the API serves) for programs.
//
//	Backend  what the centre does (package sp implements it)
//	Local    API on a Backend: pages, files, conditions, what the command line shows
//	Server   Local over HTTP: who may ask, limits, media types, problems
//	Client   API on a Server
//
// So a command does the same whether it works on the database or on a centre that runs.
//
// Who asks is known before anything else: on a Unix socket from the kernel, over TLS by a certificate that
// the operators' own anchors vouch for. It is written into the record of every change.
package operator
