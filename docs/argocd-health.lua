-- Health of a StableDiffusionModel for Argo CD. In the ConfigMap argocd-cm:
--   resource.customizations.health.sd-operator.dev_StableDiffusionModel: |
--     <this file>
local function condition(kind)
  for _, one in ipairs((obj.status or {}).conditions or {}) do
    if one.type == kind then
      return one
    end
  end
  return {}
end

local function health(status, message)
  return { status = status, message = message or "" }
end

local status = obj.status or {}
local ready = condition("Ready")
local stalled = condition("Stalled")
local text = ready.message
if text == nil or text == "" then
  text = ready.reason or "Waiting for the operator"
end

if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", text)
end
if obj.spec ~= nil and obj.spec.suspend == true then
  return health("Suspended", text)
end
if status.observedGeneration == nil or status.observedGeneration < obj.metadata.generation then
  return health("Progressing", "Waiting for the operator")
end
-- Stalled beside Ready: the wanted version could not be loaded, and the previous one is served.
if stalled.status == "True" then
  return health("Degraded", stalled.reason .. ": " .. (stalled.message or ""))
end
if condition("Reconciling").status == "True" then
  local progress = status.progress or {}
  return health("Progressing", progress.text or text)
end
if ready.status == "True" then
  return health("Healthy", text)
end
return health("Progressing", text)
