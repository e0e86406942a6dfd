package nginx

import (
	"sync"
	"text/template"
)

// The templates only ever receive values that checkRoute, checkListen or checkPath
// let pass, so they need no quoting.
var (
	appTemplate     = parse("app", appText)
	managedTemplate = parse("managed", managedText+httpText+"}\n")
	systemTemplate  = parse("system", systemText+httpText)
)

// parse waits for the first use: a command that renders nothing pays nothing.
func parse(name, text string) func() *template.Template {
	return sync.OnceValue(func() *template.Template {
		return template.Must(template.New(name).Funcs(template.FuncMap{"seconds": seconds}).Parse(text))
	})
}

// mark begins every file of ours.
const mark = "# Written by naru"

// managedText begins the main file of an nginx of our own.
const managedText = mark + `; changes to this file are lost.
{{with .User}}user {{.}};
{{end}}worker_processes {{.Workers}};
worker_rlimit_nofile {{.Files}};
worker_shutdown_timeout {{seconds .Drain}};
# By this directory the workers are known to be ours, also without a master.
working_directory {{.Work}};
pid {{.Pid}};
error_log {{.Work}}/log/error.log warn;

events {
	worker_connections 4096;
}

http {
	default_type application/octet-stream;
	server_tokens off;
	client_max_body_size 100m;
	client_header_timeout {{seconds .Silence}};
	keepalive_timeout {{if .MinTimeout}}75s{{else}}5s{{end}};
{{- if .MinTimeout}}
	keepalive_min_timeout 5s;
{{- end}}
	server_names_hash_bucket_size {{.Bucket}};
	server_names_hash_max_size {{.Names}};
	variables_hash_max_size 2048;
{{- range .Scratch}}
	{{.}}_temp_path {{$.Work}}/tmp/{{.}};
{{- end}}

	server {
{{- range .Listen}}
		listen {{.}} default_server;
{{- end}}
		listen unix:{{.Verify}} default_server;
		server_name _;
		access_log off;
		# No promise to clients of unknown hosts, so none to break at a reload.
		keepalive_timeout 0;
		default_type text/plain;
		return 404 "no application answers to this host name\n";
	}

`

// systemText begins the file that the machine's nginx includes inside http {}.
const systemText = mark + `; changes to this file are lost.
`

// httpText is what both modes say inside http {}.
const httpText = `	log_format {{.Prefix}} escape=json '{"time":$msec,"app":"${{.Prefix}}_app","method":"$request_method","host":"$host",'
		'"path":"$uri","status":$status,"bytes":$bytes_sent,"duration":$request_time,"client":"$remote_addr",'
		'"upstream":"$upstream_addr","upstream_status":"$upstream_status","upstream_duration":"$upstream_response_time",'
		'"request":"$request_id"}';
	# Only WebSocket may take a connection over: any other upgrade would smuggle
	# requests past nginx (h2c).
	map $http_upgrade ${{.Prefix}}_upgrade {
		default "";
		"~*^websocket$" websocket;
	}
	map ${{.Prefix}}_upgrade ${{.Prefix}}_connection {
		default upgrade;
		"" "";
	}
	# Who answered is told on the unix socket, never to the public.
	map $server_addr ${{.Prefix}}_seen {
		default "";
		"~^unix:" $upstream_addr;
	}
	map $server_addr ${{.Prefix}}_logged {
		default 1;
		"~^unix:" 0;
	}

	server {
		listen unix:{{.Status}} default_server;
		server_name _;
		access_log off;
		set ${{.Prefix}}_app ""; # log_format needs it to exist also without apps
		default_type text/plain;
		location = /gen {
			return 200 "_ {{.Gen}}";
		}
{{- if .Stub}}
		location = /status {
			stub_status;
		}
{{- end}}
		location / {
			return 404;
		}
	}

	include {{.Apps}}/*.conf;
`

// appText is one app's file.
const appText = mark + `; changes to this file are lost.
{{.Header}}
{{- $name := printf "%s_%s" .Prefix .Route.App}}
server {
	listen unix:{{.Status}};
	server_name {{.Route.App}};
	access_log off;
	location = /gen {
		default_type text/plain;
		return 200 "{{.Route.App}} {{.Gen}}";
	}
}
{{- if .Route.Servers}}
upstream {{$name}} {
	zone {{$name}} {{.Zone}}k;
{{- range .Route.Servers}}
	# The agent probes: one refused connection must not bar a replica for 10 s.
	server {{.}} max_fails=0;
{{- end}}
	keepalive 32;
	# Below the idle limit of every common application server (gunicorn 2 s,
	# Node 5 s): a POST on a connection that the app just closed is lost.
	keepalive_timeout 1500ms;
}
{{- end}}
server {
{{- range .Listen}}
	listen {{.}};
{{- end}}
	listen unix:{{.Verify}};
	server_name{{range .Route.Domains}} {{.}}{{end}};
	set ${{.Prefix}}_app {{.Route.App}};
	uninitialized_variable_warn off; # a request that is malformed is never given its app
	access_log {{.Work}}/log/access.log {{.Prefix}} buffer=16k flush=500ms if=${{.Prefix}}_logged;
	open_file_cache off;
	client_header_timeout {{seconds .Silence}};
	keepalive_timeout {{if .MinTimeout}}75s{{else}}5s{{end}};
{{- if .MinTimeout}}
	keepalive_min_timeout 5s;
{{- end}}
	client_max_body_size 100m;
	proxy_http_version 1.1;
	proxy_set_header Host $http_host;
	proxy_set_header Upgrade ${{.Prefix}}_upgrade;
	proxy_set_header Connection ${{.Prefix}}_connection;
	proxy_set_header X-Real-IP $remote_addr;
	# nginx is the edge: what a client says of itself is not passed on.
	proxy_set_header X-Forwarded-For $remote_addr;
	proxy_set_header X-Forwarded-Proto $scheme;
	proxy_set_header X-Forwarded-Host $http_host;
	proxy_set_header X-Forwarded-Port $server_port;
	proxy_set_header X-Request-Id $request_id;
	proxy_connect_timeout 3s;
	proxy_read_timeout 3600s;
	# A second server is tried for what cannot have been done: never for a POST
	# whose bytes were sent.
	proxy_next_upstream error timeout;
	proxy_next_upstream_tries 2;
	proxy_next_upstream_timeout 10s;
	proxy_hide_header X-Naru-Upstream;
	add_header X-Naru-Upstream ${{.Prefix}}_seen always;
	recursive_error_pages on;
	error_page 502 503 504 @unavailable;
{{- if not .MinTimeout}}
	error_page 418 = @drain;
{{- end}}
	location / {
{{- if not .MinTimeout}}
		# The announcement of a reload: see the package comment of pipeline/nginx.
		if (-f {{.Flags}}/$pid) {
			return 418;
		}
{{- end}}
{{- if .Route.Servers}}
		proxy_pass http://{{$name}};
{{- else}}
		return 503;
{{- end}}
	}
{{- if not .MinTimeout}}
	location @drain {
		keepalive_timeout 0;
{{- if .Route.Servers}}
		proxy_pass http://{{$name}};
{{- else}}
		return 503;
{{- end}}
	}
{{- end}}
	location @unavailable {
		default_type text/html;
		add_header Retry-After 5 always;
		add_header Cache-Control no-store always;
		add_header X-Naru-Upstream ${{.Prefix}}_seen always;
		return 503 "<!doctype html><meta charset=utf-8><title>Unavailable</title><h1>Unavailable</h1><p>The application does not answer. Please try again.</p>\n";
	}
}
`
