package configs

import "time"

// The structs of this file are the shapes of the YAML files. Their tags:
//
//	key       name in the file
//	doc       one sentence, printed by the schema
//	default   value when the key is absent, as it would be written
//	required  the key must be there
//	enum      allowed words, by "|"
//	later     words that are known but not supported yet, by "|"; "*": the
//	          key itself is not supported yet, only an empty value passes
//	min, max  limits, as they would be written
//	match     regular expression of the value (of each item, of each map value)
//	keys      regular expression of the keys of a map
//	hint      what match asks for, in words; keyhint: what keys asks for

// size is a number of bytes; written as 512m or 1g (powers of 1024) or a number.
type size int64

type agentFile struct {
	Listen    string    `key:"listen" default:"127.0.0.1:8420" doc:"Address of the API and the dashboard, host:port."`
	Root      string    `key:"root" default:"/var/lib/naru" match:"^[^\\x00]+$" hint:"a path" doc:"Data directory."`
	Run       string    `key:"run" default:"/run/naru" match:"^[^\\x00]+$" hint:"a path" doc:"Directory for what a reboot may forget; should be on tmpfs."`
	AppsDir   string    `key:"apps_dir" default:"apps.d" match:"^[^\\x00]+$" hint:"a path" doc:"Directory with one file per app."`
	PublicURL string    `key:"public_url" doc:"URL under which people and webhook senders reach the API."`
	Nginx     nginxFile `key:"nginx" doc:"How routes are served."`
}

type nginxFile struct {
	Mode  string `key:"mode" default:"managed" enum:"managed|system" doc:"managed: the agent runs an nginx of its own; system: it adds files to the distribution's."`
	HTTP  int    `key:"http" default:"80" min:"1" max:"65535" doc:"Port for plain HTTP."`
	HTTPS int    `key:"https" default:"443" min:"1" max:"65535" doc:"Port for TLS."`

	Bind    string `key:"bind" match:"^[0-9a-fA-F.:]*$" hint:"an IP address" doc:"Address to listen on; empty: all."`
	Include string `key:"include" default:"/etc/nginx/conf.d/naru.conf" match:"^/[^\\x00]+[.]conf$" hint:"an absolute path that ends with .conf" doc:"mode system: the file that the agent writes, in a directory from which nginx.conf includes *.conf inside http {}."`
}

type appFile struct {
	Name      string                 `key:"name" required:"true" match:"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$" hint:"at most 40 lower-case letters, digits and hyphens, a letter first" doc:"Name of the app, unique on the server."`
	Target    string                 `key:"target" default:"local" enum:"local" later:"docker|swarm|kubernetes" doc:"Where the replicas run."`
	Source    sourceFile             `key:"source" doc:"Where the code is."`
	Runtime   string                 `key:"runtime" match:"^(/[^\\x00]*[^/\\x00]|[A-Za-z0-9][A-Za-z0-9._-]{0,99})?$" hint:"a name such as runsc, or an absolute path" doc:"OCI runtime that runs the replicas, a name in the agent's PATH or an absolute path; empty: the sandbox's own."`
	Image     string                 `key:"image" later:"*" doc:"A ready image instead of source and build."`
	Build     buildFile              `key:"build" doc:"How a commit becomes an image."`
	Processes map[string]processFile `key:"processes" required:"true" keys:"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$" keyhint:"at most 40 lower-case letters, digits and hyphens, a letter first" doc:"The programs of the app; web is the one that gets the requests."`
	Route     routeFile              `key:"route" doc:"Which requests the app answers."`
	Deploy    deployFile             `key:"deploy" doc:"How a new release replaces the old one."`
	Triggers  triggersFile           `key:"triggers" doc:"What, beside a person, starts a deployment."`
	Env       map[string]string      `key:"env" keys:"^[A-Za-z_][A-Za-z0-9_]{0,199}$" match:"^[^\\x00]*$" hint:"text without NUL" keyhint:"letters, digits and underscores, no digit first" doc:"Environment of all processes."`
	Secrets   []string               `key:"secrets" later:"*" doc:"Names of the secrets that the processes get as environment."`
	Volumes   []volumeFile           `key:"volumes" doc:"Storage that outlives replicas."`
}

type sourceFile struct {
	Repo       string   `key:"repo" required:"true" doc:"URL of the git repository: https://, ssh://, user@host:path or file://."`
	Branch     string   `key:"branch" default:"main" doc:"Branch that is deployed."`
	Paths      []string `key:"paths" doc:"Globs such as web/**: a push that changes none of them deploys nothing."`
	TokenFile  string   `key:"token_file" doc:"https: file that holds the access token."`
	KeyFile    string   `key:"key_file" doc:"ssh: file that holds the private key, without passphrase."`
	KnownHosts string   `key:"known_hosts" doc:"ssh: file with the host keys of the server, as ssh-keyscan prints them."`
}

type buildFile struct {
	Context    string            `key:"context" default:"." doc:"Directory of the build, relative to the repository."`
	Dockerfile string            `key:"dockerfile" default:"Dockerfile" doc:"Dockerfile, relative to the context."`
	Target     string            `key:"target" match:"^[A-Za-z0-9._-]*$" hint:"the name of a stage" doc:"Stage to build; empty: the last one."`
	Args       map[string]string `key:"args" keys:"^[A-Za-z_][A-Za-z0-9_]{0,199}$" match:"^[^\\x00]*$" hint:"text without NUL" keyhint:"letters, digits and underscores, no digit first" doc:"Build arguments."`
	Secrets    []string          `key:"secrets" match:"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$" hint:"the name of a secret: letters, digits, dot, hyphen, underscore" doc:"Names of secrets that RUN --mount=type=secret,id=NAME gets; a value is the file secrets/<name> in the data directory."`
	Network    string            `key:"network" default:"default" enum:"default|none" doc:"Network of RUN steps. default: the outside, but not this machine, its containers and a cloud's metadata; none: none."`
	Memory     size              `key:"memory" default:"4g" min:"4m" max:"64t" doc:"Memory limit of one RUN step."`
	CPUs       float64           `key:"cpus" min:"0.01" max:"4096" doc:"Processors of one RUN step; empty: all."`
	Pids       int               `key:"pids" default:"4096" min:"1" max:"4194304" doc:"Processes and threads of one RUN step."`
	Disk       size              `key:"disk" default:"20g" min:"1m" max:"64t" doc:"What all steps of one build may write."`
	Timeout    time.Duration     `key:"timeout" default:"30m" min:"1s" max:"24h" doc:"Longest time of one build."`
}

type processFile struct {
	Command   []string      `key:"command" match:"^[^\\x00]*$" hint:"text without NUL" doc:"Program and arguments; empty: those of the image."`
	Port      int           `key:"port" min:"1" max:"65535" doc:"Port on which the process answers HTTP."`
	Replicas  int           `key:"replicas" default:"1" min:"1" max:"100" doc:"How many run at once."`
	Health    healthFile    `key:"health" doc:"When a replica is ready."`
	Resources resourcesFile `key:"resources" doc:"Limits of one replica."`
	Stop      stopFile      `key:"stop" doc:"How a replica is stopped."`
}

type healthFile struct {
	Path     string        `key:"path" default:"/" match:"^/[!-~]*$" hint:"a URL path, / first, without spaces" doc:"Path that is asked for; a status below 400 is healthy."`
	Interval time.Duration `key:"interval" default:"1s" min:"50ms" max:"1h" doc:"Time between two questions."`
	Timeout  time.Duration `key:"timeout" default:"2s" min:"50ms" max:"10m" doc:"Longest time for one answer."`
	Healthy  int           `key:"healthy" default:"2" min:"1" max:"100" doc:"Healthy answers in a row that make a replica ready."`
	Deadline time.Duration `key:"deadline" default:"60s" min:"1s" max:"24h" doc:"A replica that is not ready by then has failed."`
}

type resourcesFile struct {
	Memory size    `key:"memory" default:"512m" min:"4m" max:"64t" doc:"Memory limit."`
	CPUs   float64 `key:"cpus" default:"1" min:"0.01" max:"4096" doc:"Processors, also fractions."`
	Pids   int     `key:"pids" default:"256" min:"1" max:"4194304" doc:"Processes and threads."`
}

type stopFile struct {
	Signal string        `key:"signal" default:"TERM" enum:"TERM|INT|QUIT|HUP|USR1|USR2|WINCH|KILL" doc:"Signal that asks the process to end."`
	Grace  time.Duration `key:"grace" default:"10s" min:"0s" max:"24h" doc:"Time until it is killed."`
}

type routeFile struct {
	Domains []string `key:"domains" doc:"Host names whose requests the app answers."`
	TLS     string   `key:"tls" default:"off" enum:"off" later:"auto|acme|on|file" doc:"Where certificates come from."`
}

type deployFile struct {
	Strategy       string        `key:"strategy" default:"rolling" enum:"rolling" later:"recreate|blue-green|canary|stop-first" doc:"Order of starting and stopping."`
	Surge          int           `key:"surge" default:"1" min:"0" max:"100" doc:"Replicas that may run above the wanted number."`
	Unavailable    int           `key:"unavailable" default:"0" min:"0" max:"100" doc:"Replicas that may be missing."`
	Drain          time.Duration `key:"drain" default:"30s" min:"0s" max:"24h" doc:"Longest time for the requests of an old replica to end."`
	Bake           time.Duration `key:"bake" default:"0s" min:"0s" max:"24h" doc:"Time to watch the new release before the deployment is done."`
	ReleaseCommand []string      `key:"release_command" match:"^[^\\x00]*$" hint:"text without NUL" doc:"Command that runs once in the new image before any replica, for migrations."`
	Keep           int           `key:"keep" default:"5" min:"1" max:"100" doc:"Releases that can be rolled back to."`
}

type triggersFile struct {
	Webhook   *webhookFile   `key:"webhook" doc:"Deploy when a sender says that the branch has moved."`
	Schedules []scheduleFile `key:"schedules" doc:"Deploy at fixed times."`
	Poll      string         `key:"poll" later:"*" doc:"Look for new commits at this interval."`
}

type webhookFile struct {
	Sender     string `key:"sender" required:"true" enum:"github" later:"gitlab|gitea|gogs|bitbucket|generic|jenkins|registry" doc:"Who sends."`
	Secret     string `key:"secret" match:"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$" hint:"the name of a secret: letters, digits, dot, hyphen, underscore" doc:"Name of the secret; its value is the file secrets/<name> in the data directory."`
	SecretFile string `key:"secret_file" doc:"File that holds the secret, instead of secret."`
}

type scheduleFile struct {
	Cron string `key:"cron" required:"true" doc:"Five fields (minute hour day month weekday), @daily and the like, or @every 1h."`
	Zone string `key:"tz" default:"UTC" doc:"Time zone of the fields, such as Asia/Seoul."`
}

type volumeFile struct {
	Name string `key:"name" required:"true" match:"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$" hint:"at most 40 lower-case letters, digits and hyphens, a letter first" doc:"Name of the volume."`
	Path string `key:"path" required:"true" doc:"Where it is in the container."`
}
