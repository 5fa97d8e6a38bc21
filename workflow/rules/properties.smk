# DAO-P fine-tuned on another property, and that property of the candidates. Only with property.enabled.


rule finetune_property:
    input:
        labels=campaigns.property_table,
        init=campaigns.at("train_energy_model", "models/dao_p/model.safetensors"),
    output:
        weights="results/{campaign}/models/property/model.safetensors",
        config="results/{campaign}/models/property/config.json",
        metrics="results/{campaign}/models/property/metrics.parquet",
        rejected="results/{campaign}/models/property/rejected.parquet",
    log:
        "logs/{campaign}/finetune_property.log",
    benchmark:
        "results/{campaign}/timings/finetune_property.tsv"
    retries: 2
    conda:
        "../../envs/gpu.yaml"
    threads: campaigns.threads("training")
    resources:
        gpu=campaigns.gpus("training"),
        gpu_model=campaigns.gpu_model("training"),
        gres=campaigns.gres("training"),
        mem_mb=campaigns.mem_mb("training"),
        runtime=campaigns.runtime("training"),
    params:
        config="results/{campaign}/config.yaml",
        init=subpath(input.init, parent=True),
        out=subpath(output.weights, parent=True),
        work="work/{campaign}/finetune_property",
        settings=campaigns.settings("finetune_property"),
        code=stage_code_hash("finetune_property"),
    shell:
        "dao-pipeline finetune-property --config {params.config:q} --model {params.init:q}"
        " --out {params.out:q} --work {params.work:q} > {log:q} 2>&1"


rule predict_property:
    input:
        model="results/{campaign}/models/property/model.safetensors",
        screened=campaigns.at("screen_candidates", "candidates/screened.parquet"),
    output:
        "results/{campaign}/properties/predictions.parquet",
    log:
        "logs/{campaign}/predict_property.log",
    benchmark:
        "results/{campaign}/timings/predict_property.tsv"
    retries: 2
    conda:
        "../../envs/gpu.yaml"
    threads: campaigns.threads("sampling")
    resources:
        gpu=campaigns.gpus("sampling"),
        gpu_model=campaigns.gpu_model("sampling"),
        gres=campaigns.gres("sampling"),
        mem_mb=campaigns.mem_mb("sampling"),
        runtime=campaigns.runtime("sampling"),
    params:
        config="results/{campaign}/config.yaml",
        model=subpath(input.model, parent=True),
        settings=campaigns.settings("predict_property"),
        code=stage_code_hash("predict_property"),
    shell:
        "dao-pipeline predict-property --config {params.config:q} --model {params.model:q}"
        " --screened {input.screened:q} --out {output:q} > {log:q} 2>&1"
