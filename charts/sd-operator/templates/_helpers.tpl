{{/* Sets each value that is absent to its default: null removes a default, and --reuse-values keeps
     the values of an older release. Each template includes this first, since all share the values
     and their order is not defined. */}}
{{- define "sd-operator.complete" -}}
{{- include "sd-operator.fill" (list .Values (.Files.Get "files/defaults.yaml" | fromYaml)) -}}
{{- end -}}

{{/* Sets the absent keys of a map; takes a list of the map and its defaults. In resources and labels
     null removes an entry. */}}
{{- define "sd-operator.fill" -}}
{{- $values := index . 0 -}}
{{- range $key, $default := index . 1 -}}
{{- if kindIs "invalid" (index $values $key) -}}
{{- $_ := set $values $key $default -}}
{{- else if and (kindIs "map" $default) (not (has $key (list "resources" "labels"))) -}}
{{- include "sd-operator.fill" (list (index $values $key) $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of all objects, which also begins longer names. A Service's name must not have a dot,
     and the CronJob's, with its suffix -sweep, must not have more than 52 characters. */}}
{{- define "sd-operator.name" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- end -}}
{{- $name | replace "." "-" | trunc 46 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of cluster-scoped objects: two releases must not share them. */}}
{{- define "sd-operator.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "sd-operator.name" .) -}}
{{- end -}}

{{/* The selector of the operator's Pods; it must never change. */}}
{{- define "sd-operator.selector" -}}
app.kubernetes.io/name: sd-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* The selector of the gateway's Pods; it must never change. */}}
{{- define "sd-operator.gatewaySelector" -}}
app.kubernetes.io/name: sd-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{/* The labels of all objects. */}}
{{- define "sd-operator.labels" -}}
app.kubernetes.io/name: sd-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The operator's ServiceAccount. */}}
{{- define "sd-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "sd-operator.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The gateway's ServiceAccount. */}}
{{- define "sd-operator.gatewayServiceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.gateway.serviceAccountName | default (printf "%s-gateway" (include "sd-operator.name" .)) -}}
{{- else -}}
{{- .Values.gateway.serviceAccountName | default "default" -}}
{{- end -}}
{{- end -}}

{{/* An image's full name; takes a list of the root and the image's values. */}}
{{- define "sd-operator.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := ternary (printf "%s/%s" $root.Values.registry $image.repository) $image.repository (ne $root.Values.registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The models' namespaces, as a JSON list. */}}
{{- define "sd-operator.namespaces" -}}
{{- $.Values.models.namespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- end -}}

{{/* Egress to DNS, as a rule of a NetworkPolicy. */}}
{{- define "sd-operator.dnsEgress" -}}
{{- $dns := .Values.loader.networkPolicy.dns -}}
- to:
    {{- toYaml $dns.to | nindent 4 }}
  ports:
    {{- range $dns.ports }}
    - port: {{ int . }}
      protocol: UDP
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end -}}

{{/* The hosts of the values, some with a port, as a JSON list of [name of the value, host]. */}}
{{- define "sd-operator.hosts" -}}
{{- $hosts := list -}}
{{- range $name, $url := dict "hubEndpoint" .Values.hubEndpoint "sources.civitaiEndpoint" .Values.sources.civitaiEndpoint "proxy.https" .Values.proxy.https "trainedUrlTemplate" .Values.trainedUrlTemplate -}}
{{- $hosts = append $hosts (list $name (regexReplaceAll `^https?://([^/?#]*).*$` $url "${1}")) -}}
{{- end -}}
{{- range .Values.allowedHosts -}}
{{- $hosts = append $hosts (list "allowedHosts" .) -}}
{{- end -}}
{{- toJson $hosts -}}
{{- end -}}

{{/* Egress to the addresses and ports that the address guard permits, as a rule of a
     NetworkPolicy: the ranges come from sd_api.netguard, and the ports from there and from the
     URLs and allowed hosts of the values. */}}
{{- define "sd-operator.publicEgress" -}}
{{- $values := .Values -}}
{{- $network := .Files.Get "files/network.yaml" | fromYaml -}}
{{- $refused := concat $network.refusedCIDRs $values.loader.networkPolicy.refusedCIDRs | uniq -}}
{{- $ports := $network.ports -}}
{{- range $pair := include "sd-operator.hosts" . | fromJsonArray -}}
{{- with regexFind `^([^:]+|\[.*\]):[0-9]+$` (index $pair 1) | regexFind `[0-9]+$` -}}
{{- $ports = append $ports (float64 .) -}}
{{- end -}}
{{- end -}}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except:
          {{- range $refused }}
          {{- if not (contains ":" .) }}
          - {{ . }}
          {{- end }}
          {{- end }}
    - ipBlock:
        cidr: ::/0
        except:
          {{- range $refused }}
          {{- if contains ":" . }}
          - {{ . | quote }}
          {{- end }}
          {{- end }}
  ports:
    {{- range $ports | uniq }}
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
{{- end -}}

{{/* Pull secrets of a Pod. */}}
{{- define "sd-operator.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The security context of a Pod under the restricted Pod Security Standard. */}}
{{- define "sd-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The security context of a container under the restricted Pod Security Standard. */}}
{{- define "sd-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The gateway's settings as environment variables. */}}
{{- define "sd-operator.gatewaySettings" -}}
{{- $values := .Values -}}
{{- $gateway := $values.gateway -}}
{{- $host := ternary (printf "https://%s" $gateway.ingress.host) "" (ne $gateway.ingress.host "") -}}
{{- $settings := list
  (list "KEYS_FILE" "/etc/sd-gateway/keys/keys")
  (list "CLAIM_NAME" $values.models.claim.name)
  (list "ALLOWED_CLAIMS" (join "," $values.models.allowedClaims))
  (list "ALLOWED_HOSTS" (join "," $values.allowedHosts))
  (list "HF_ENDPOINT" $values.hubEndpoint)
  (list "CIVITAI_ENDPOINT" $values.sources.civitaiEndpoint)
  (list "LOOKUPS" $gateway.lookups)
  (list "HTTPS_PROXY" $values.proxy.https)
  (list "NO_PROXY" $values.proxy.noProxy)
  (list "LOGINS_DIR" (ternary "/etc/sd-gateway/logins" "" (ne $values.loginsSecret "")))
  (list "CA_FILE" (ternary "/etc/sd-gateway/ca/ca.crt" "" (ne $gateway.caConfigMap "")))
  (list "STORE" (ternary "/models" "" $gateway.previews))
  (list "PUBLIC_URL" ($gateway.publicUrl | default $host))
  (list "TRUSTED_PROXIES" (join "," $gateway.trustedProxies))
  (list "CALLS_PER_MINUTE" (int64 $gateway.callsPerMinute))
  (list "FAILURES_PER_MINUTE" (int64 $gateway.failuresPerMinute))
  (list "MAX_CONNECTIONS" (int64 $gateway.maxConnections))
  (list "MAX_CONNECTIONS_PER_ADDRESS" (int64 $gateway.maxConnectionsPerAddress))
  (list "LOG_LEVEL" $values.logLevel)
  (list "LOG_FORMAT" $values.logFormat)
-}}
{{- range $setting := $settings }}
{{- if ne (toString (index $setting 1)) "" }}
- name: SD_GATEWAY_{{ index $setting 0 }}
  value: {{ toString (index $setting 1) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The operator's settings as environment variables. Helm reads numbers as floats, hence int64. */}}
{{- define "sd-operator.settings" -}}
{{- $values := .Values -}}
{{- $loader := $values.loader -}}
{{- $namespaces := ternary "" (include "sd-operator.namespaces" . | fromJsonArray | join ",") $values.models.clusterWide -}}
{{- $parts := list -}}
{{- range $base, $repo := $loader.defaultParts -}}
{{- $parts = append $parts (printf "%s=%s" $base $repo) -}}
{{- end -}}
{{- $tokens := list -}}
{{- range $host, $secret := $values.credentials.defaults -}}
{{- $private := ternary ":private" "" (default false $secret.private) -}}
{{- $gateway := ternary ":gateway" "" (default false $secret.gateway) -}}
{{- $tokens = append $tokens (printf "%s=%s%s%s" $host $secret.secret $private $gateway) -}}
{{- end -}}
{{- $placement := dict -}}
{{- range $field := list "nodeSelector" "tolerations" "runtimeClassName" "priorityClassName" -}}
{{- with index $loader $field -}}
{{- $_ := set $placement $field . -}}
{{- end -}}
{{- end -}}
{{- $settings := list
  (list "NAMESPACES" $namespaces)
  (list "CLAIM_NAME" $values.models.claim.name)
  (list "ALLOWED_CLAIMS" (join "," $values.models.allowedClaims))
  (list "LOADER_IMAGE" (include "sd-operator.image" (list . $loader.image)))
  (list "LOADER_SLIM_IMAGE" (include "sd-operator.image" (list . $loader.slimImage)))
  (list "IMAGE_PULL_SECRETS" (join "," $values.imagePullSecrets))
  (list "GPU_RESOURCE" $loader.gpu.resource)
  (list "GPU_COUNT" (int64 $loader.gpu.count))
  (list "CA_CONFIGMAP" $values.caConfigMap)
  (list "MAX_BYTES" (int64 $loader.maxBytes))
  (list "RETAIN_PREVIOUS_SECONDS" (int64 $values.retainPrevious))
  (list "CHECK_SECONDS" (int64 $values.checkSeconds))
  (list "LOADER_TMP_SIZE" $loader.tmpSize)
  (list "ACTIVE_DEADLINE_SECONDS" (int64 $loader.activeDeadlineSeconds))
  (list "LOAD_TTL_SECONDS" (int64 $loader.loadTtlSeconds))
  (list "REMOVE_TTL_SECONDS" (int64 $loader.removeTtlSeconds))
  (list "LOADER_DEFAULT_PARTS" (join "," $parts))
  (list "ALLOW_JOB_OVERRIDES" $loader.allowOverrides)
  (list "LOADER_SECURITY_CONTEXT" (ternary (toJson $loader.securityContext) "" (not (empty $loader.securityContext))))
  (list "LOADER_PLACEMENT" (ternary (toJson $placement) "" (not (empty $placement))))
  (list "PRIORITY_CLASSES" (join "," $loader.allowedPriorityClasses))
  (list "KUEUE_QUEUE" $values.kueueQueue)
  (list "MAX_LOADS" (int64 $values.limits.loads))
  (list "MAX_LOADS_PER_NAMESPACE" (int64 $values.limits.loadsPerNamespace))
  (list "ALLOWED_HOSTS" (join "," $values.allowedHosts))
  (list "HF_ENDPOINT" $values.hubEndpoint)
  (list "CIVITAI_ENDPOINT" $values.sources.civitaiEndpoint)
  (list "VERIFY_DIGEST" $values.sources.verifyDigest)
  (list "PICTURES" $values.sources.pictures)
  (list "TRAINED_URL_TEMPLATE" $values.trainedUrlTemplate)
  (list "HTTPS_PROXY" $values.proxy.https)
  (list "NO_PROXY" $values.proxy.noProxy)
  (list "LOGINS_SECRET" $values.loginsSecret)
  (list "DEFAULT_CREDENTIALS" (join "," $tokens))
  (list "LOGINS_DIR" (ternary "/etc/sd-operator/logins" "" (ne $values.loginsSecret "")))
  (list "WEBHOOK_KEY_FILE" (ternary "/etc/sd-operator/webhook/key" "" (ne $values.webhook.keySecret.name "")))
  (list "WEBHOOK_CA_FILE" (ternary "/etc/sd-operator/ca/ca.crt" "" (ne $values.webhook.caConfigMap "")))
  (list "WEBHOOK_RETRY_SECONDS" (join "," $values.webhook.retrySeconds))
  (list "LOG_LEVEL" $values.logLevel)
  (list "LOG_FORMAT" $values.logFormat)
-}}
{{- range $setting := $settings }}
{{- if ne (toString (index $setting 1)) "" }}
- name: SD_OPERATOR_{{ index $setting 0 }}
  value: {{ toString (index $setting 1) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Refuses values that contradict each other, which the schema cannot see. */}}
{{- define "sd-operator.check" -}}
{{- $values := .Values -}}
{{- /* No message shows a link: it may contain a password or a key. */ -}}
{{- if and $values.trainedUrlTemplate (not (regexMatch `^https?://[^\s/?#{}]+[/?]\S*\{id\}\S*$` $values.trainedUrlTemplate)) -}}
{{- fail "trainedUrlTemplate must be an http(s) link with {id} where the trained model's id goes, after the host" -}}
{{- end -}}
{{- range $name, $url := dict "hubEndpoint" $values.hubEndpoint "sources.civitaiEndpoint" $values.sources.civitaiEndpoint "proxy.https" $values.proxy.https "trainedUrlTemplate" $values.trainedUrlTemplate -}}
{{- if and $url (not (regexMatch `^https?://[^\s/?#]` $url)) -}}
{{- fail (printf "%s must be a link that begins with http:// or https://" $name) -}}
{{- end -}}
{{- if regexMatch `^[a-z]+://[^/?#]*@` $url -}}
{{- fail (printf "%s must not contain a user name or a password, because every reader of a Job would see them; put them into the Secret that loginsSecret names" $name) -}}
{{- end -}}
{{- if and (ne $name "trainedUrlTemplate") (regexMatch `[?#]` $url) -}}
{{- fail (printf "%s must not have a query or a fragment, because every reader of a Job would see a key in it; put a login into the Secret that loginsSecret names" $name) -}}
{{- end -}}
{{- end -}}
{{- range $pair := include "sd-operator.hosts" . | fromJsonArray -}}
{{- $port := regexFind `^([^:]+|\[.*\]):[0-9]+$` (index $pair 1) | regexFind `[0-9]+$` -}}
{{- if and $port (not (regexMatch `^0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$` $port)) -}}
{{- fail (printf "%s has a port that does not exist: ports are numbers from 1 to 65535" (index $pair 0)) -}}
{{- end -}}
{{- end -}}
{{- if and $values.networkPolicy.enabled (not $values.networkPolicy.apiServer.to) -}}
{{- fail "networkPolicy.apiServer.to must name the addresses of the API server, or the operator could not reach it: kubectl get endpoints kubernetes --namespace default" -}}
{{- end -}}
{{- if and $values.metrics.podMonitor.enabled $values.metrics.serviceMonitor.enabled -}}
{{- fail "metrics.podMonitor and metrics.serviceMonitor would scrape every operator twice: enable one of them" -}}
{{- end -}}
{{- if and $values.models.clusterWide (not $values.models.claim.create) $values.models.namespaces (not $values.loader.networkPolicy.enabled) (not $values.sweep.enabled) -}}
{{- fail "models.namespaces has no effect: with models.clusterWide it only decides where the chart makes PVCs, network policies and sweeps, and all three are off" -}}
{{- end -}}
{{- end -}}
